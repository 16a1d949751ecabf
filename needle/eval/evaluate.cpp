#include "needle/eval/evaluate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/core/thread_pool.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

CallRequest request_of(const EvalCase& eval_case, const EvaluateOptions& options) {
  return {.query = eval_case.query,
          .tools_json = eval_case.tools,
          .max_gen_len = options.max_gen_len,
          .constrain = options.constrain,
          .grounding = options.grounding,
          .detail = options.confidence ? StepDetail::kConfidence : StepDetail::kNone,
          .alternatives = 0};
}

// Before the first answer: tools that no grammar can be made of end no long run in its middle.
void check_requests(const FunctionCaller& caller, std::span<const EvalCase> cases,
                    const EvaluateOptions& options) {
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (i > 0 && cases[i].tools == cases[i - 1].tools) {
      continue;
    }
    try {
      caller.prepare(request_of(cases[i], options));
    } catch (const ConfigError&) {
      throw;
    } catch (const Error& error) {
      throw DataError(format("row {}: {}; mend the tools, or answer with constrain names or none",
                             i + 1, error.what()));
    }
  }
}

Prediction predict(const FunctionCaller& caller, const EvalCase& eval_case,
                   const EvaluateOptions& options) {
  const auto start = Clock::now();
  CallResult result = caller.call(request_of(eval_case, options));
  return {.text = std::move(result.text),
          .ids = std::move(result.ids),
          .stop = result.stop,
          .cut_tokens = result.cut_query_tokens + result.cut_tools_tokens,
          .prefill_seconds = result.prefill_seconds,
          .seconds = seconds_since(start),
          .confidence = std::move(result.confidence)};
}

// Nearest-rank quantile of sorted values.
double quantile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) {
    return 0;
  }
  const auto last = static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<std::size_t>(share * last + 0.5)];
}

SpeedReport speed_of(const Predictions& predictions) {
  SpeedReport speed;
  std::vector<double> seconds;
  for (const Prediction& prediction : predictions.items) {
    speed.tokens += static_cast<std::int64_t>(prediction.ids.size()) +
                    (prediction.stop == StopReason::kEos ? 1 : 0);
    speed.mean_prefill_seconds += prediction.prefill_seconds;
    seconds.push_back(prediction.seconds);
  }
  std::sort(seconds.begin(), seconds.end());
  speed.wall_seconds = predictions.wall_seconds;
  if (speed.wall_seconds > 0) {
    speed.tokens_per_second = static_cast<double>(speed.tokens) / speed.wall_seconds;
  }
  speed.mean_prefill_seconds /= static_cast<double>(std::max<std::size_t>(1, seconds.size()));
  speed.median_seconds = quantile(seconds, 0.5);
  speed.p95_seconds = quantile(seconds, 0.95);
  return speed;
}

}  // namespace

Predictions predict_calls(const FunctionCaller& caller, std::span<const EvalCase> cases,
                          const EvaluateOptions& options) {
  check_requests(caller, cases, options);
  Predictions predictions;
  predictions.items.resize(cases.size());
  const auto start = Clock::now();
  std::atomic<std::size_t> next = 0;
  std::size_t done = 0;
  std::mutex progress_mutex;
  ThreadPool pool(options.threads);
  // One chunk a thread; each takes the next case, because answers differ a lot in length.
  pool.parallel_for(pool.thread_count(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t worker = begin; worker < end; ++worker) {
      for (std::size_t i = next++; i < cases.size(); i = next++) {
        predictions.items[i] = predict(caller, cases[i], options);
        if (options.on_progress) {
          const std::lock_guard lock(progress_mutex);
          options.on_progress(++done);
        }
      }
    }
  });
  predictions.wall_seconds = seconds_since(start);
  return predictions;
}

CallReport score_predictions(std::span<const EvalCase> cases, const Predictions& predictions,
                             std::size_t keep_failures) {
  NEEDLE_CHECK(cases.size() == predictions.items.size(), "{} predictions for {} cases",
               predictions.items.size(), cases.size());
  CallReport report;
  FailureLog failures(keep_failures);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const EvalCase& eval_case = cases[i];
    const Prediction& prediction = predictions.items[i];
    const ScoredAnswer strict =
        score_answer(prediction.text, eval_case.answers, eval_case.tools, kStrictRules);
    report.strict += strict.counts;
    report.loose +=
        score_answer(prediction.text, eval_case.answers, eval_case.tools, kLooseRules).counts;
    report.by_bucket[bucket_of(eval_case)] += strict.counts;
    if (!strict.exact) {
      failures.add(i, eval_case, prediction.text, strict.reasons);
    }
    report.cut_prompts += prediction.cut_tokens > 0 ? 1 : 0;
    report.length_limited += prediction.stop == StopReason::kMaxTokens ? 1 : 0;
  }
  report.failures = failures.kept();
  report.failure_kinds = failures.by_kind();
  report.speed = speed_of(predictions);
  return report;
}

CallReport evaluate_calls(const FunctionCaller& caller, std::span<const EvalCase> cases,
                          const EvaluateOptions& options) {
  return score_predictions(cases, predict_calls(caller, cases, options), options.keep_failures);
}

}  // namespace needle
