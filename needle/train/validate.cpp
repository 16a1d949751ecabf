#include "needle/train/validate.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "needle/core/progress.h"
#include "needle/model/model_engine.h"
#include "needle/train/fake_quant_scope.h"
#include "needle/train/perplexity.h"

namespace needle {
namespace {

// The time is looked at between two groups of queries.
constexpr std::size_t kQueriesAtATime = 16;

std::size_t at_most(std::size_t count, std::int64_t limit) {
  return std::min(count, static_cast<std::size_t>(std::max<std::int64_t>(limit, 0)));
}

void add_perplexity(Needle& model, const torch::Device& device, const ValidationData& data,
                    const ValidateConfig& config, std::vector<Scalar>& scores) {
  const std::size_t count =
      data.datasets.empty() ? 0 : at_most(data.rows.size(), config.perplexity_rows);
  if (count == 0) {
    return;
  }
  const std::span<const std::int64_t> rows = std::span(data.rows).first(count);
  const auto batch_rows = static_cast<std::size_t>(config.batch_rows);
  std::size_t next = 0;
  const auto next_batch = [&](Batch& batch) {
    const std::size_t size = std::min(batch_rows, rows.size() - next);
    if (size > 0) {
      data.datasets.front().fill_batch(rows.subspan(next, size), batch);
      next += size;
    }
    return size > 0;
  };
  constexpr std::array kModes = {FakeQuant::kNone, FakeQuant::kInt4};
  const PerplexityReport report = measure_perplexity(model, device, next_batch, kModes);
  scores.emplace_back("perplexity", report.perplexity[0]);
  scores.emplace_back("perplexity_int4", report.perplexity[1]);
}

CallReport answer(Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt,
                  std::span<const EvalCase> cases, const ValidateConfig& config) {
  const FakeQuantScope quantized(*model, config.generate_quant, FakeQuant::kNone);
  const ModelEngine engine(model);
  const FunctionCaller caller(engine, tokenizer, prompt);
  const EvaluateOptions options{.max_gen_len = config.max_gen_len,
                                .constrain = Constrain::kNone,
                                .threads = static_cast<std::size_t>(config.threads)};
  Predictions predictions;
  Progress progress("validation", cases.size(), "queries");
  const auto start = std::chrono::steady_clock::now();
  while (predictions.items.size() < cases.size()) {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (config.max_seconds > 0.0 && spent.count() > config.max_seconds &&
        !predictions.items.empty()) {
      break;
    }
    const auto rest = cases.subspan(predictions.items.size());
    Predictions part =
        predict_calls(caller, rest.first(std::min(rest.size(), kQueriesAtATime)), options);
    std::move(part.items.begin(), part.items.end(), std::back_inserter(predictions.items));
    predictions.wall_seconds += part.wall_seconds;
    progress.set(predictions.items.size());
  }
  return score_predictions(cases.first(predictions.items.size()), predictions);
}

}  // namespace

EvalCase to_eval_case(const CallExample& example) {
  return {.query = example.query, .tools = example.tools, .answers = example.answers};
}

std::vector<EvalCase> to_eval_cases(std::span<const CallExample> examples) {
  std::vector<EvalCase> cases;
  cases.reserve(examples.size());
  std::transform(examples.begin(), examples.end(), std::back_inserter(cases), to_eval_case);
  return cases;
}

double single_call_f1(const CallReport& report) {
  CallCounts single;
  for (const auto& [bucket, counts] : report.by_bucket) {
    if (bucket.pool == CallPool::kSingle) {
      single += counts;
    }
  }
  return single.calls.f1();
}

std::vector<Scalar> validate(Needle model, const torch::Device& device, const Tokenizer& tokenizer,
                             const PromptConfig& prompt, const ValidationData& data,
                             const ValidateConfig& config) {
  std::vector<Scalar> scores;
  add_perplexity(model, device, data, config, scores);
  const std::size_t count = at_most(data.examples.size(), config.generate_rows);
  if (count > 0) {
    const std::vector<EvalCase> cases = to_eval_cases(std::span(data.examples).first(count));
    const CallReport report = answer(model, tokenizer, prompt, cases, config);
    scores.emplace_back("exact_match", report.strict.exact.ratio());
    scores.emplace_back("call_f1", report.strict.calls.f1());
    scores.emplace_back("single_call_f1", single_call_f1(report));
    scores.emplace_back("name_f1", report.strict.names.f1());
    scores.emplace_back("parse_rate", report.strict.parsed.ratio());
  }
  return scores;
}

}  // namespace needle
