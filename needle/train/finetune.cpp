#include "needle/train/finetune.h"

#include <algorithm>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/core/progress.h"
#include "needle/eval/compare.h"
#include "needle/eval/report.h"
#include "needle/eval/stratify.h"
#include "needle/model/model_engine.h"
#include "needle/train/finetune_bundle.h"
#include "needle/train/finetune_data.h"
#include "needle/train/released_weights.h"
#include "needle/train/saved_model.h"
#include "needle/train/validate.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

bool from_scratch(const FinetuneOptions& options) { return options.checkpoint == "none"; }

// The published weights: those in the cache folder, else downloaded if the user agrees.
fs::path released_weights(const FinetuneOptions& options) {
  const fs::path folder = released_weights_folder();
  if (const auto found = find_released_weights(folder)) {
    return found->weights;
  }
  const std::string url = released_weights_url();
  const bool alone = options.environment.world == 1;  // several would each download
  if (is_offline() || !alone || !options.confirm ||
      !options.confirm(format("Download the released weights ({}, 53 MB) into {}?", url, folder))) {
    throw ConfigError(format(
        "no model to start from: {} holds no needle.pkl and nothing was downloaded. Give "
        "--checkpoint PATH, or --checkpoint none to train from scratch, or --yes to download {}",
        folder, url));
  }
  std::unique_ptr<Progress> progress;
  std::string title;
  const FetchReport report = download_released_weights(
      folder, [&](std::string_view name, std::uint64_t done, std::uint64_t total) {
        if (!progress || title != name) {
          title = name;
          progress = std::make_unique<Progress>(name, total, "bytes");
        }
        progress->set(done);
      });
  progress.reset();
  if (!report.verified) {
    log_warning("{} was not verified: no SHA-256 is known (NEEDLE_WEIGHTS_SHA256)",
                report.files.weights);
  }
  return report.files.weights;
}

std::optional<SavedModel> load_base(const FinetuneOptions& options) {
  if (from_scratch(options)) {
    return std::nullopt;
  }
  return load_saved_model(
      options.checkpoint.empty() ? released_weights(options) : fs::path(options.checkpoint),
      options.tokenizer);
}

// The base decides the shape and how prompts are written; the config named, or one that suits the
// base, the rest.
RunConfig make_config(const FinetuneOptions& options, const std::optional<SavedModel>& base) {
  RunConfig defaults;
  std::string name = "finetune_scratch";
  if (base) {
    defaults.model = base->model->config();
    defaults.data.rows.prompt = base->prompt;
    name = base->source.extension() == ".pkl" ? "finetune_released" : "finetune";
  } else {
    defaults.model = load_model_config(options.model_config);
    defaults.tokenizer.file = options.tokenizer;
  }
  RunConfig config =
      load_run_config(options.config.empty() ? name : options.config, options.overrides, defaults);
  if (base && !(config.model == base->model->config())) {
    throw ConfigError(
        "the config sets another model shape than the checkpoint has; leave `model` out of it");
  }
  if (base && config.data.rows.prompt.json_escapes != base->prompt.json_escapes) {
    throw ConfigError(
        "data.rows.prompt.json_escapes differs from what the checkpoint was trained with; leave it "
        "out");
  }
  if (!options.output.empty()) {
    config.output = options.output;
  }
  config.data.train = {options.data};
  return config;
}

// Answers to the test split, constrained as served; written to `saved`, too.
CallReport evaluate_on_test(Needle model, const Tokenizer& tokenizer, const RunConfig& config,
                            const ExportedEngine& exported, std::span<const CallExample> test,
                            const std::string& title, const fs::path& saved, Ranks* ranks) {
  const std::vector<EvalCase> cases = to_eval_cases(test);
  const bool speaks = ranks == nullptr || ranks->is_first();
  std::optional<Progress> progress;
  if (speaks) {
    progress.emplace(title, cases.size() / static_cast<std::size_t>(ranks ? ranks->world() : 1),
                     "queries");
  }
  auto engine = answering_engine(model, choose_device(config.train.device), tokenizer,
                                 serving_prompt(config), config.validate, exported);
  if (engine == nullptr) {
    engine = std::make_shared<const ModelEngine>(model);
  }
  const FunctionCaller caller(*engine, tokenizer, serving_prompt(config));
  const EvaluateOptions options{.max_gen_len = config.validate.max_gen_len,
                                .threads = static_cast<std::size_t>(config.validate.threads),
                                .on_progress = [&](std::size_t done) {
                                  if (progress) {
                                    progress->set(done);
                                  }
                                }};
  const Predictions predictions = predict_on_ranks(caller, cases, options, ranks);
  if (speaks) {
    write_predictions(saved, saved_predictions(cases, predictions));
  }
  return score_predictions(cases, predictions);
}

// Validation without a single call has no single-call F1 to go by.
std::string deciding_score(std::span<const CallExample> validation) {
  const bool any_single =
      std::any_of(validation.begin(), validation.end(), [](const CallExample& example) {
        return bucket_of(to_eval_case(example)).pool == CallPool::kSingle;
      });
  return any_single ? "single_call_f1" : "exact_match";
}

void announce_evaluation(const FinetuneOptions& options, const Ranks* ranks,
                         const std::string& name, const CallReport& report) {
  log_info("{}: exact match {:.1f} %, call F1 {:.3f}", name, 100.0 * report.strict.exact.ratio(),
           report.strict.calls.f1());
  if (options.on_record && (ranks == nullptr || ranks->is_first())) {
    options.on_record({{"kind", "evaluation"}, {"model", name}, {"report", to_json(report)}});
  }
}

FinetuneResult finetune_on(Ranks* ranks, const std::optional<SavedModel>& base, RunConfig config,
                           const FinetuneOptions& options) {
  const bool resume = options.resume || options.environment.restarts > 0;
  check_run_folder(config.output, resume);
  const FinetuneData examples =
      read_finetune_data(options.data, config.split, config.data.rows.skip_bad_rows);

  const Tokenizer tokenizer =
      base ? base->tokenizer : make_tokenizer(config, config.data.train, resume, ranks);
  config.model.vocab_size = tokenizer.vocab_size();
  config.tokenizer.train.vocab_size = tokenizer.vocab_size();
  const RunData data = make_run_data(config, tokenizer, examples.train, examples.validation);
  Needle model = base ? base->model : make_model(config);
  place_model(model, config.train);

  TrainerHooks hooks{.validate = {},
                     .best_score = deciding_score(examples.validation),
                     .should_stop = options.should_stop,
                     .on_record = options.on_record,
                     .ranks = ranks};
  if (!examples.validation.empty()) {
    hooks.validate = [&, device = choose_device(config.train.device)] {
      return validate(model, device, tokenizer, serving_prompt(config), data.validation,
                      config.validate, ranks, options.should_stop, options.exported_engine);
    };
  }
  Trainer trainer(model, tokenizer, config, data.train, std::move(hooks));
  FinetuneResult result{.plan = plan_run(config, model, data.train, trainer.steps_per_epoch()),
                        .summary = {},
                        .base = {},
                        .finetuned = {},
                        .test_examples = static_cast<std::int64_t>(examples.test.size()),
                        .table = {},
                        .bundle = {},
                        .config = config,
                        .is_first = ranks == nullptr || ranks->is_first()};
  if (options.dry_run) {
    return result;
  }
  fs::create_directories(config.output);
  if (base) {  // before resume(), which changes the model
    result.base = evaluate_on_test(model, tokenizer, config, options.exported_engine, examples.test,
                                   "base", config.output / "base_answers.jsonl", ranks);
    announce_evaluation(options, ranks, "base", *result.base);
  }
  if (resume) {
    trainer.resume();
  }
  result.summary = trainer.run();

  SavedModel best = load_saved_model(result.summary.best_checkpoint);
  place_model(best.model, config.train);
  result.finetuned =
      evaluate_on_test(best.model, best.tokenizer, config, options.exported_engine, examples.test,
                       "finetuned", config.output / "finetuned_answers.jsonl", ranks);
  announce_evaluation(options, ranks, "finetuned", result.finetuned);
  result.table = comparison_text(result.base, result.finetuned, /*markdown=*/false);
  result.bundle = config.output / "bundle";
  if (!result.is_first) {
    return result;
  }
  write_bundle(result.bundle,
               {.model = best,
                .data = examples,
                .summary = result.summary,
                .base = result.base,
                .finetuned = result.finetuned,
                .base_name = base ? base->source.string() : "none (trained from scratch)"});
  return result;
}

}  // namespace

FinetuneResult finetune(const FinetuneOptions& options) {
  if (!fs::exists(options.data)) {  // said before anything is downloaded for it
    throw FileError(format("{}: no such file; expected JSONL rows", options.data));
  }
  const std::optional<SavedModel> base = load_base(options);
  RunConfig config = make_config(options, base);
  const auto ranks = join_ranks(config, options.environment);
  return with_failure_report(ranks.get(),
                             [&] { return finetune_on(ranks.get(), base, config, options); });
}

}  // namespace needle
