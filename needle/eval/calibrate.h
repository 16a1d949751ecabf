// Fits a calibration to a model's answers and tells what it is worth.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/decode/calibration.h"
#include "needle/eval/eval_case.h"
#include "needle/eval/evaluate.h"

namespace needle {

// One answer or call: how sure the model was, and whether it was right.
struct Judged {
  double probability = 0;
  bool right = false;
};

// Maximum likelihood with Platt's targets, (n_right + 1) / (n_right + 2) and 1 / (n_wrong + 2), so
// that a sample without a mistake gives no certainty; Newton's method with backtracking (Lin, Lin,
// Weng 2007). A slope below 0 (sure answers were wrong more often) becomes 0. Throws Error on an
// empty sample.
PlattScale fit_platt(std::span<const Judged> sample);

// Mean of |share of right ones - mean probability| over `bins` bins of equally many (Naeini et al.
// 2015 with equal mass), weighted by size.
double expected_calibration_error(std::span<const Judged> sample, std::size_t bins = 10);
double brier_score(std::span<const Judged> sample);

// Taking only what is at least as sure as `threshold`.
struct CoveragePoint {
  double threshold = 0;
  double coverage = 0;   // share that is taken
  double precision = 0;  // share of right ones among them; 1 if nothing is taken
};
// At coverages of 100, 90, ... 10 %; equally sure ones go together.
std::vector<CoveragePoint> coverage_curve(std::span<const Judged> sample);
// The most that can be taken with at least this precision; nothing if no threshold gives it.
std::optional<CoveragePoint> threshold_for(std::span<const Judged> sample, double precision);

struct CalibrationReport {
  std::int64_t examples = 0;
  double right = 0;  // share
  double ece_before = 0, ece_after = 0;
  double brier_before = 0, brier_after = 0;
  // Sorted by neither; each calibrated by a fit to the other folds, so that figures after
  // calibration are of unseen examples.
  std::vector<Judged> held_out;
};
// Five folds by position; fewer than 10 examples are judged by the fit to all of them.
CalibrationReport cross_validate(std::span<const Judged> sample);

struct JudgedAnswers {
  std::vector<Judged> answers;
  std::vector<Judged> calls;
};
// `predictions` must have been made with EvaluateOptions::confidence. An answer is right if it is
// exact by kStrictRules, a call if the reference has an equal one.
JudgedAnswers judge(std::span<const EvalCase> cases, const Predictions& predictions);

Json to_json(const CalibrationReport& report, double target_precision);
// A table for people: both reports, coverage against precision, the threshold for the target.
std::string calibration_text(const CalibrationReport& answers, const CalibrationReport& calls,
                             double target_precision);

}  // namespace needle
