#include "needle/train/validate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <optional>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/core/json.h"
#include "needle/core/log.h"
#include "needle/core/progress.h"
#include "needle/train/batch_answers.h"
#include "needle/train/fake_quant_scope.h"
#include "needle/train/perplexity.h"

namespace needle {
namespace {

// Decoded together; the time is looked at between two groups.
constexpr std::size_t kQueriesAtATime = 64;
constexpr std::int64_t kRowsAtATime = 32;

std::size_t at_most(std::size_t count, std::int64_t limit) {
  return std::min(count, static_cast<std::size_t>(std::max<std::int64_t>(limit, 0)));
}

using StopQuestion = std::function<bool()>;

void stop_if(const StopQuestion& should_stop) {
  if (should_stop && should_stop()) {
    throw Interrupted("stopped while validating");
  }
}

void add_perplexity(Needle& model, const torch::Device& device, const ValidationData& data,
                    const ValidateConfig& config, Ranks* ranks, const StopQuestion& should_stop,
                    std::vector<Scalar>& scores) {
  const std::size_t count =
      data.datasets.empty() ? 0 : at_most(data.rows.size(), config.perplexity_rows);
  if (count == 0) {
    return;
  }
  const std::span<const std::int64_t> rows = std::span(data.rows).first(count);
  const auto batch_rows = static_cast<std::size_t>(config.batch_rows);
  // Batches in turn, so that they are the same whatever the number of ranks.
  const auto world = static_cast<std::size_t>(ranks != nullptr ? ranks->world() : 1);
  std::size_t next = batch_rows * static_cast<std::size_t>(ranks != nullptr ? ranks->rank() : 0);
  const auto next_batch = [&](Batch& batch) {
    stop_if(should_stop);
    if (next >= rows.size()) {
      return false;
    }
    data.datasets.front().fill_batch(rows.subspan(next, std::min(batch_rows, rows.size() - next)),
                                     batch);
    next += batch_rows * world;
    return true;
  };
  constexpr std::array kModes = {FakeQuant::kNone, FakeQuant::kInt4};
  const PerplexityReport report = measure_perplexity(model, device, next_batch, kModes, ranks);
  scores.emplace_back("perplexity", report.perplexity[0]);
  scores.emplace_back("perplexity_int4", report.perplexity[1]);
}

Json to_json(const Prediction& prediction) {
  return {{"text", Json::binary({prediction.text.begin(), prediction.text.end()})},
          {"ids", prediction.ids},
          {"stop", static_cast<int>(prediction.stop)},
          {"cut_tokens", prediction.cut_tokens},
          {"prefill_seconds", prediction.prefill_seconds},
          {"seconds", prediction.seconds}};
}

Prediction prediction_from(const Json& json) {
  const auto& text = json.at("text").get_binary();
  return {.text = {text.begin(), text.end()},
          .ids = json.at("ids").get<std::vector<TokenId>>(),
          .stop = static_cast<StopReason>(json.at("stop").get<int>()),
          .cut_tokens = json.at("cut_tokens").get<std::int64_t>(),
          .prefill_seconds = json.at("prefill_seconds").get<double>(),
          .seconds = json.at("seconds").get<double>()};
}

// Of `own`, answers to cases rank, rank + world, ...: those of all ranks in the order of the cases.
// Cases that a rank ran out of time for are left out of both.
Predictions exchange(const Predictions& own, Ranks& ranks, std::vector<std::size_t>& answered) {
  Json list = Json::array();
  for (const Prediction& prediction : own.items) {
    list.push_back(to_json(prediction));
  }
  const auto bytes = Json::to_cbor({{"items", list}, {"seconds", own.wall_seconds}});
  std::map<std::size_t, Prediction> by_case;
  Predictions all;
  std::size_t rank = 0;
  for (const std::string& part : ranks.gather({bytes.begin(), bytes.end()})) {
    const Json json = Json::from_cbor(part);
    all.wall_seconds = std::max(all.wall_seconds, json.at("seconds").get<double>());
    std::size_t place = rank++;
    for (const Json& item : json.at("items")) {
      by_case[place] = prediction_from(item);
      place += static_cast<std::size_t>(ranks.world());
    }
  }
  answered.clear();
  for (auto& [place, prediction] : by_case) {
    answered.push_back(place);
    all.items.push_back(std::move(prediction));
  }
  return all;
}

std::vector<EvalCase> share_of(std::span<const EvalCase> cases, const Ranks& ranks) {
  std::vector<EvalCase> share;
  for (auto i = static_cast<std::size_t>(ranks.rank()); i < cases.size();
       i += static_cast<std::size_t>(ranks.world())) {
    share.push_back(cases[i]);
  }
  return share;
}

using AnswerCases = std::function<Predictions(std::span<const EvalCase>)>;

// Answers until the time is over; some of the cases at least.
Predictions answer_in_time(const AnswerCases& answer, std::span<const EvalCase> cases,
                           double max_seconds, bool show_progress,
                           const StopQuestion& should_stop) {
  Predictions predictions;
  std::optional<Progress> progress;
  if (show_progress) {
    progress.emplace("validation", cases.size(), "queries");
  }
  const auto start = std::chrono::steady_clock::now();
  while (predictions.items.size() < cases.size()) {
    stop_if(should_stop);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (max_seconds > 0.0 && spent.count() > max_seconds && !predictions.items.empty()) {
      break;
    }
    const auto rest = cases.subspan(predictions.items.size());
    Predictions part = answer(rest.first(std::min(rest.size(), kQueriesAtATime)));
    std::move(part.items.begin(), part.items.end(), std::back_inserter(predictions.items));
    predictions.wall_seconds += part.wall_seconds;
    if (progress) {
      progress->set(predictions.items.size());
    }
  }
  return predictions;
}

CallReport answer(std::span<const EvalCase> cases, const AnswerCases& answer_cases,
                  const ValidateConfig& config, Ranks* ranks, const StopQuestion& should_stop) {
  if (ranks == nullptr) {
    const Predictions predictions = answer_in_time(answer_cases, cases, config.max_seconds,
                                                   /*show_progress=*/true, should_stop);
    return score_predictions(cases.first(predictions.items.size()), predictions);
  }
  const Predictions own = answer_in_time(answer_cases, share_of(cases, *ranks), config.max_seconds,
                                         ranks->is_first(), {});
  std::vector<std::size_t> answered;
  const Predictions all = exchange(own, *ranks, answered);
  std::vector<EvalCase> scored;
  for (const std::size_t place : answered) {
    scored.push_back(cases[place]);
  }
  return score_predictions(scored, all);
}

CallReport answer(Needle& model, const torch::Device& device, const Tokenizer& tokenizer,
                  const PromptConfig& prompt, std::span<const EvalCase> cases,
                  const ValidateConfig& config, Ranks* ranks, const StopQuestion& should_stop,
                  const ExportedEngine& exported) {
  const auto engine = answering_engine(model, device, tokenizer, prompt, config, exported);
  if (engine != nullptr) {
    const FunctionCaller caller(*engine, tokenizer, prompt);
    const EvaluateOptions options{.max_gen_len = config.max_gen_len,
                                  .constrain = Constrain::kNone,
                                  .threads = static_cast<std::size_t>(at::get_num_threads())};
    return answer(
        cases, [&](std::span<const EvalCase> some) { return predict_calls(caller, some, options); },
        config, ranks, should_stop);
  }
  const FakeQuantScope quantized(*model, config.generate_quant, FakeQuant::kNone);
  const BatchAnswerOptions options{.max_gen_len = config.max_gen_len, .batch_rows = kRowsAtATime};
  return answer(
      cases,
      [&](std::span<const EvalCase> some) {
        return predict_calls_in_batches(model, tokenizer, prompt, some, options);
      },
      config, ranks, should_stop);
}

}  // namespace

std::shared_ptr<const Engine> answering_engine(const Needle& model, const torch::Device& device,
                                               const Tokenizer& tokenizer,
                                               const PromptConfig& prompt,
                                               const ValidateConfig& config,
                                               const ExportedEngine& exported) {
  const bool possible = exported && config.generate_quant == FakeQuant::kInt4;
  if (config.generate_with == GenerateWith::kEngine && !possible) {
    throw ConfigError(
        format("validate.generate_with = engine: {}; choose model or auto",
               exported ? "validate.generate_quant must be int4" : "this program has no engine"));
  }
  if (!possible || config.generate_with == GenerateWith::kModel ||
      (config.generate_with == GenerateWith::kAuto && !device.is_cpu())) {
    return nullptr;
  }
  try {
    return exported(model, tokenizer, prompt);
  } catch (const Error& error) {
    log_warning("the model could not be exported ({}); LibTorch answers", error.what());
    return nullptr;
  }
}

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

Predictions predict_on_ranks(const FunctionCaller& caller, std::span<const EvalCase> cases,
                             const EvaluateOptions& options, Ranks* ranks) {
  if (ranks == nullptr) {
    return predict_calls(caller, cases, options);
  }
  std::vector<std::size_t> answered;
  return exchange(predict_calls(caller, share_of(cases, *ranks), options), *ranks, answered);
}

std::vector<Scalar> validate(Needle model, const torch::Device& device, const Tokenizer& tokenizer,
                             const PromptConfig& prompt, const ValidationData& data,
                             const ValidateConfig& config, Ranks* ranks,
                             const std::function<bool()>& should_stop,
                             const ExportedEngine& exported) {
  const StopQuestion asked = ranks == nullptr ? should_stop : StopQuestion();
  std::vector<Scalar> scores;
  add_perplexity(model, device, data, config, ranks, asked, scores);
  const std::size_t count = at_most(data.examples.size(), config.generate_rows);
  if (count > 0) {
    const std::vector<EvalCase> cases = to_eval_cases(std::span(data.examples).first(count));
    const CallReport report =
        answer(model, device, tokenizer, prompt, cases, config, ranks, asked, exported);
    scores.emplace_back("exact_match", report.strict.exact.ratio());
    scores.emplace_back("call_f1", report.strict.calls.f1());
    scores.emplace_back("single_call_f1", single_call_f1(report));
    scores.emplace_back("name_f1", report.strict.names.f1());
    scores.emplace_back("parse_rate", report.strict.parsed.ratio());
  }
  return scores;
}

}  // namespace needle
