#include "apps/needle_eval/options.h"

#include "needle/core/error.h"
#include "needle/core/progress.h"
#include "needle/data/jsonl_reader.h"
#include "needle/eval/stratify.h"

namespace needle {

void add_data_options(CLI::App& command, DataOptions& options, bool required) {
  auto* data = command.add_option("--data", options.file, "JSONL file of rows, plain or gzip");
  data->required(required);
  command.add_option("--limit", options.limit, "Take the first N rows; 0: all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_option("--per-bucket", options.per_bucket,
                     "Take at most N rows of every number of calls and tools; 0: all");
  command.add_option("--seed", options.seed, "Which rows --per-bucket takes")
      ->capture_default_str();
}

std::vector<EvalCase> read_cases(const DataOptions& options) {
  std::vector<EvalCase> cases;
  for_each_call_example(options.file,
                        [&](CallExample example) {
                          cases.push_back({.query = std::move(example.query),
                                           .tools = std::move(example.tools),
                                           .answers = std::move(example.answers)});
                        },
                        {.max_rows = options.limit});
  if (cases.empty()) {
    throw DataError(format("{}: no rows to evaluate on", options.file));
  }
  if (options.per_bucket > 0) {
    std::vector<EvalCase> sample;
    for (const std::size_t i : stratified_sample(cases, options.per_bucket, options.seed)) {
      sample.push_back(cases[i]);
    }
    cases = std::move(sample);
  }
  return cases;
}

void add_device_options(CLI::App& command, std::string& device, std::vector<std::string>& plugins) {
  command
      .add_option("--device", device,
                  "Where a checkpoint computes: auto, cpu, cuda, cuda:1, mps, xpu or a plug-in's "
                  "name")
      ->capture_default_str();
  command
      .add_option("--device-plugin", plugins,
                  "Shared library that brings a device, may be given several times; also "
                  "NEEDLE_DEVICE_PLUGIN=PATH:PATH (docs/devices.md)")
      ->allow_extra_args(false);
}

void add_model_options(CLI::App& command, EvalModelOptions& options) {
  command.add_option("--tokenizer", options.tokenizer,
                     "SentencePiece model, for a needle.pkl without one beside it");
  add_device_options(command, options.device, options.device_plugins);
  command
      .add_option("--kernels", options.kernels,
                  "Quantise a checkpoint's kernels as an export would")
      ->check(CLI::IsMember({"none", "int4", "int8"}))
      ->capture_default_str();
  command.add_option("--embedding", options.embedding, "The same for its embedding")
      ->check(CLI::IsMember({"none", "int4", "int8"}))
      ->capture_default_str();
  command
      .add_option("--numerics", options.numerics,
                  "How the runtime computes a .needle file: mixed as needle-run does, int8, int16, "
                  "or float")
      ->check(CLI::IsMember({"mixed", "int8", "int16", "float"}))
      ->capture_default_str();
  command.add_flag("--libtorch", options.libtorch,
                   "Compute a .needle file with LibTorch, not the runtime: same weights, other "
                   "program");
}

void add_answer_options(CLI::App& command, AnswerOptions& options) {
  command
      .add_option(
          "--constrain", options.constrain,
          "grammar: answers valid by the tools' schemas; names: declared tool names and argument "
          "keys, as the reference; none: free")
      ->check(CLI::IsMember({"grammar", "names", "none"}))
      ->capture_default_str();
  command
      .add_option(
          "--ground", options.ground,
          "auto: strings without a form of their own must stand in the query (with grammar)")
      ->check(CLI::IsMember({"off", "auto"}))
      ->capture_default_str();
  command.add_option("--max-gen-len", options.max_gen_len, "Longest answer in tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--threads", options.threads,
                  "Queries answered at a time; 0: one per core; 1 for honest latencies")
      ->capture_default_str();
}

Predictions answer(const EvalModel& model, std::span<const EvalCase> cases,
                   const AnswerOptions& options, bool confidence) {
  const FunctionCaller caller(*model.engine, *model.tokenizer, model.prompt);
  Progress progress(model.name, cases.size(), "queries");
  return predict_calls(caller, cases,
                       {.max_gen_len = options.max_gen_len,
                        .constrain = *kConstrainNames.parse(options.constrain),
                        .grounding = *kGroundingNames.parse(options.ground),
                        .threads = options.threads,
                        .confidence = confidence,
                        .on_progress = [&](std::size_t done) { progress.set(done); }});
}

}  // namespace needle
