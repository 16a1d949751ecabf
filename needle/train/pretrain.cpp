#include "needle/train/pretrain.h"

namespace needle {

namespace {

PretrainResult pretrain_on(Ranks* ranks, RunConfig config, const PretrainOptions& options) {
  const bool resume = options.resume || options.environment.restarts > 0;
  check_run_folder(config.output, resume);
  const Tokenizer tokenizer = make_tokenizer(config, config.data.train, resume, ranks);
  config.model.vocab_size = tokenizer.vocab_size();
  config.tokenizer.train.vocab_size = tokenizer.vocab_size();
  RunData data = load_run_data(config, tokenizer, ranks);

  Needle model = make_model(config);
  place_model(model, config.train);
  TrainerHooks hooks{.validate = {},
                     .best_score = "perplexity",
                     .lower_is_better = true,
                     .should_stop = options.should_stop,
                     .on_record = options.on_record,
                     .ranks = ranks};
  if (!data.validation.rows.empty()) {
    hooks.validate = [&, device = choose_device(config.train.device)] {
      return validate(model, device, tokenizer, serving_prompt(config), data.validation,
                      config.validate, ranks, options.should_stop, options.exported_engine);
    };
  }
  Trainer trainer(model, tokenizer, config, data.train, std::move(hooks));
  PretrainResult result{.plan = plan_run(config, model, data.train, trainer.steps_per_epoch()),
                        .summary = {},
                        .config = config,
                        .is_first = ranks == nullptr || ranks->is_first()};
  if (options.dry_run) {
    return result;
  }
  if (resume) {
    trainer.resume();
  }
  result.summary = trainer.run();
  return result;
}

}  // namespace

PretrainResult pretrain(const PretrainOptions& options) {
  RunConfig config = load_run_config(options.config, options.overrides);
  if (!options.data.empty()) {
    config.data.train.assign(options.data.begin(), options.data.end());
  }
  if (!options.output.empty()) {
    config.output = options.output;
  }
  const auto ranks = join_ranks(config, options.environment);
  return with_failure_report(ranks.get(),
                             [&] { return pretrain_on(ranks.get(), config, options); });
}

}  // namespace needle
