#include "needle/eval/calibrate.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "needle/calls/call.h"
#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/eval/call_metrics.h"

namespace needle {
namespace {

constexpr std::size_t kFolds = 5;

// -log likelihood of one example with log-odds z, stable for large z.
double loss_of(double target, double z) {
  return z >= 0 ? (1 - target) * z + std::log1p(std::exp(-z))
                : -target * z + std::log1p(std::exp(z));
}

struct PlattFit {
  std::vector<double> odds;
  std::vector<double> targets;

  double loss(double slope, double intercept) const {
    double sum = 0;
    for (std::size_t i = 0; i < odds.size(); ++i) {
      sum += loss_of(targets[i], slope * odds[i] + intercept);
    }
    return sum;
  }

  // One Newton step, halved until the loss falls. False: nothing is left to gain.
  bool improve(double& slope, double& intercept, bool with_slope) const {
    double h11 = 1e-9, h22 = 1e-9, h12 = 0, g1 = 0, g2 = 0;
    for (std::size_t i = 0; i < odds.size(); ++i) {
      const double p = 1 / (1 + std::exp(-(slope * odds[i] + intercept)));
      const double x = with_slope ? odds[i] : 0;
      h11 += x * x * p * (1 - p);
      h22 += p * (1 - p);
      h12 += x * p * (1 - p);
      g1 += x * (p - targets[i]);
      g2 += p - targets[i];
    }
    const double determinant = h11 * h22 - h12 * h12;
    const double step1 = with_slope ? -(h22 * g1 - h12 * g2) / determinant : 0;
    const double step2 = -(h11 * g2 - h12 * g1) / determinant;
    const double now = loss(slope, intercept);
    for (double size = 1; size > 1e-8; size /= 2) {
      if (loss(slope + size * step1, intercept + size * step2) < now - 1e-10) {
        slope += size * step1;
        intercept += size * step2;
        return true;
      }
    }
    return false;
  }
};

std::vector<Judged> sorted(std::span<const Judged> sample) {
  std::vector<Judged> all(sample.begin(), sample.end());
  std::ranges::stable_sort(all, std::ranges::greater(), &Judged::probability);
  return all;
}

Json scale_free_json(const CalibrationReport& report) {
  return {{"examples", report.examples},         {"right", report.right},
          {"ece_before", report.ece_before},     {"ece_after", report.ece_after},
          {"brier_before", report.brier_before}, {"brier_after", report.brier_after}};
}

Json to_json(const CoveragePoint& point) {
  return {
      {"threshold", point.threshold}, {"coverage", point.coverage}, {"precision", point.precision}};
}

std::string report_lines(std::string_view what, const CalibrationReport& report, double target) {
  std::string text = format(
      "{}: {} judged, {:.1f} % right\n"
      "  calibration error  {:.3f} before, {:.3f} after\n"
      "  Brier score        {:.3f} before, {:.3f} after\n"
      "  taken   right   threshold\n",
      what, report.examples, 100 * report.right, report.ece_before, report.ece_after,
      report.brier_before, report.brier_after);
  for (const CoveragePoint& point : coverage_curve(report.held_out)) {
    text += format("  {:5.1f} %  {:5.1f} %  {:.4f}\n", 100 * point.coverage, 100 * point.precision,
                   point.threshold);
  }
  const auto chosen = threshold_for(report.held_out, target);
  text += chosen ? format("  {:.1f} % right from {:.4f} on: {:.1f} % are taken\n", 100 * target,
                          chosen->threshold, 100 * chosen->coverage)
                 : format("  no threshold gives {:.1f} % right\n", 100 * target);
  return text;
}

}  // namespace

PlattScale fit_platt(std::span<const Judged> sample) {
  if (sample.empty()) {
    throw Error("nothing to fit a calibration to: no example was judged");
  }
  const auto right = static_cast<double>(std::ranges::count(sample, true, &Judged::right));
  const double wrong = static_cast<double>(sample.size()) - right;
  PlattFit fit;
  for (const Judged& judged : sample) {
    fit.odds.push_back(log_odds(judged.probability));
    fit.targets.push_back(judged.right ? (right + 1) / (right + 2) : 1 / (wrong + 2));
  }
  PlattScale scale{.examples = std::ssize(sample)};
  for (int step = 0; step < 100 && fit.improve(scale.slope, scale.intercept, true); ++step) {
  }
  if (scale.slope < 0) {
    scale.slope = 0;
    for (int step = 0; step < 100 && fit.improve(scale.slope, scale.intercept, false); ++step) {
    }
  }
  return scale;
}

double expected_calibration_error(std::span<const Judged> sample, std::size_t bins) {
  const std::vector<Judged> all = sorted(sample);
  double error = 0;
  for (std::size_t bin = 0; bin < bins; ++bin) {
    const std::size_t begin = all.size() * bin / bins;
    const std::size_t end = all.size() * (bin + 1) / bins;
    double gap = 0;
    for (std::size_t i = begin; i < end; ++i) {
      gap += (all[i].right ? 1.0 : 0.0) - all[i].probability;
    }
    error += std::abs(gap);
  }
  return error / static_cast<double>(std::max<std::size_t>(1, all.size()));
}

double brier_score(std::span<const Judged> sample) {
  double sum = 0;
  for (const Judged& judged : sample) {
    const double gap = (judged.right ? 1.0 : 0.0) - judged.probability;
    sum += gap * gap;
  }
  return sum / static_cast<double>(std::max<std::size_t>(1, sample.size()));
}

std::vector<CoveragePoint> coverage_curve(std::span<const Judged> sample) {
  const std::vector<Judged> all = sorted(sample);
  std::vector<CoveragePoint> curve;
  for (int tenth = 10; tenth >= 1 && !all.empty(); --tenth) {
    std::size_t taken =
        std::max<std::size_t>(1, (all.size() * static_cast<std::size_t>(tenth) + 9) / 10);
    while (taken < all.size() && all[taken].probability == all[taken - 1].probability) {
      ++taken;
    }
    const auto right = std::count_if(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(taken),
                                     [](const Judged& judged) { return judged.right; });
    const auto count = static_cast<double>(taken);
    curve.push_back({.threshold = all[taken - 1].probability,
                     .coverage = count / static_cast<double>(all.size()),
                     .precision = static_cast<double>(right) / count});
  }
  return curve;
}

std::optional<CoveragePoint> threshold_for(std::span<const Judged> sample, double precision) {
  const std::vector<Judged> all = sorted(sample);
  std::optional<CoveragePoint> best;
  double right = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    right += all[i].right ? 1 : 0;
    const bool last_of_equals = i + 1 == all.size() || all[i + 1].probability != all[i].probability;
    const auto taken = static_cast<double>(i + 1);
    if (last_of_equals && right / taken >= precision) {
      best = {.threshold = all[i].probability,
              .coverage = taken / static_cast<double>(all.size()),
              .precision = right / taken};
    }
  }
  return best;
}

CalibrationReport cross_validate(std::span<const Judged> sample) {
  const std::size_t folds = sample.size() < 2 * kFolds ? 1 : kFolds;
  CalibrationReport report{.examples = std::ssize(sample)};
  for (std::size_t fold = 0; fold < folds && !sample.empty(); ++fold) {
    std::vector<Judged> others;
    for (std::size_t i = 0; i < sample.size(); ++i) {
      if (folds == 1 || i % folds != fold) {
        others.push_back(sample[i]);
      }
    }
    const PlattScale scale = fit_platt(others);
    for (std::size_t i = fold; i < sample.size(); i += folds) {
      report.held_out.push_back(
          {.probability = calibrated(scale, sample[i].probability), .right = sample[i].right});
    }
  }
  report.right = static_cast<double>(std::ranges::count(sample, true, &Judged::right)) /
                 static_cast<double>(std::max<std::size_t>(1, sample.size()));
  report.ece_before = expected_calibration_error(sample);
  report.ece_after = expected_calibration_error(report.held_out);
  report.brier_before = brier_score(sample);
  report.brier_after = brier_score(report.held_out);
  return report;
}

JudgedAnswers judge(std::span<const EvalCase> cases, const Predictions& predictions) {
  NEEDLE_CHECK(cases.size() == predictions.items.size(), "{} predictions for {} cases",
               predictions.items.size(), cases.size());
  JudgedAnswers judged;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Prediction& prediction = predictions.items[i];
    NEEDLE_CHECK(prediction.confidence, "prediction {} was made without confidence", i);
    judged.answers.push_back(
        {.probability = prediction.confidence->probability,
         .right =
             score_answer(prediction.text, cases[i].answers, cases[i].tools, kStrictRules).exact});
    if (prediction.confidence->calls.empty()) {
      continue;  // nothing is called, or the answer is no list of calls
    }
    std::set<std::string> right;
    for (const Call& call : parse_calls_text(cases[i].answers)) {
      right.insert(canonical(call));
    }
    const std::vector<Call> calls = parse_calls_text(prediction.text);
    for (std::size_t c = 0; c < std::min(calls.size(), prediction.confidence->calls.size()); ++c) {
      judged.calls.push_back({.probability = prediction.confidence->calls[c].probability,
                              .right = right.contains(canonical(calls[c]))});
    }
  }
  return judged;
}

Json to_json(const CalibrationReport& report, double target_precision) {
  Json json = scale_free_json(report);
  json["coverage"] = Json::array();
  for (const CoveragePoint& point : coverage_curve(report.held_out)) {
    json["coverage"].push_back(to_json(point));
  }
  json["target_precision"] = target_precision;
  const auto chosen = threshold_for(report.held_out, target_precision);
  json["chosen"] = chosen ? to_json(*chosen) : Json();
  return json;
}

std::string calibration_text(const CalibrationReport& answers, const CalibrationReport& calls,
                             double target_precision) {
  return report_lines("answers", answers, target_precision) + "\n" +
         report_lines("calls", calls, target_precision);
}

}  // namespace needle
