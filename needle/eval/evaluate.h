// A model's answers to a set of cases, and the report on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "needle/decode/generate.h"
#include "needle/eval/call_metrics.h"
#include "needle/eval/eval_case.h"
#include "needle/eval/failures.h"
#include "needle/eval/stratify.h"

namespace needle {

struct EvaluateOptions {
  std::int64_t max_gen_len = 512;
  Constrain constrain = Constrain::kGrammar;
  Grounding grounding = Grounding::kOff;  // with kGrammar
  std::size_t threads = 1;                // requests answered at a time; 0: one per core
  std::size_t keep_failures = 50;
  bool confidence = false;                            // fills Prediction::confidence
  std::function<void(std::size_t done)> on_progress;  // calls take turns, from any thread
};

struct Prediction {
  std::string text;
  std::vector<TokenId> ids;
  StopReason stop = StopReason::kEos;
  std::int64_t cut_tokens = 0;  // of query and tools: they did not fit the prompt
  double prefill_seconds = 0;
  double seconds = 0;                          // the whole request
  std::optional<AnswerConfidence> confidence;  // where it was asked for
};

struct Predictions {
  std::vector<Prediction> items;  // in the order of the cases
  double wall_seconds = 0;
};

// The answers do not depend on the number of threads.
Predictions predict_calls(const FunctionCaller& caller, std::span<const EvalCase> cases,
                          const EvaluateOptions& options);

struct SpeedReport {
  std::int64_t tokens = 0;  // generated, eos included
  double wall_seconds = 0;
  double tokens_per_second = 0;     // of wall time, all threads together
  double mean_prefill_seconds = 0;  // the encoder
  double median_seconds = 0;        // per request
  double p95_seconds = 0;
};

struct CallReport {
  CallCounts strict;                       // kStrictRules
  CallCounts loose;                        // kLooseRules
  std::map<Bucket, CallCounts> by_bucket;  // strict
  std::vector<CallFailure> failures;       // strict; the first ones
  std::map<std::string, std::int64_t> failure_kinds;
  std::int64_t cut_prompts = 0;     // cases whose query or tools were cut
  std::int64_t length_limited = 0;  // answers that ended at the length limit
  SpeedReport speed;
};

// `predictions` in the order of the cases.
CallReport score_predictions(std::span<const EvalCase> cases, const Predictions& predictions,
                             std::size_t keep_failures = 50);

// predict_calls and score_predictions.
CallReport evaluate_calls(const FunctionCaller& caller, std::span<const EvalCase> cases,
                          const EvaluateOptions& options = {});

}  // namespace needle
