#include "needle/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/record_function.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/log.h"
#include "needle/core/progress.h"
#include "needle/model/checkpoint.h"
#include "needle/train/profile.h"
#include "needle/train/saved_model.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

// Of global batches: every rank draws the same rows and takes its slice.
SamplerOptions Trainer::sampler_options() const {
  const TrainConfig& train = config_.train;
  const std::int64_t shares = train.batch_scope == BatchScope::kRank ? world_size() : 1;
  return {.row_count = static_cast<std::int64_t>(data_.rows.size()),
          .batch_rows = train.batch_size * shares,
          .seed = train.seed};
}

Json TrainSummary::to_json() const {
  return {{"steps", steps},
          {"skipped", skipped},
          {"rollbacks", rollbacks},
          {"last_loss", std::isfinite(last_loss) ? Json(last_loss) : Json(nullptr)},
          {"seconds", seconds},
          {"tokens_per_second", tokens_per_second},
          {"best_score", best_score ? Json(*best_score) : Json(nullptr)},
          {"last_checkpoint", last_checkpoint.string()},
          {"best_checkpoint", best_checkpoint.string()}};
}

Trainer::Trainer(Needle model, Tokenizer tokenizer, const RunConfig& config, TrainingData data,
                 TrainerHooks hooks)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      config_(config),
      data_(std::move(data)),
      hooks_(std::move(hooks)),
      device_(model_->embedding->weight.device()),
      checkpoints_(config.output, config.train.keep_checkpoints),
      last_loss_(std::numeric_limits<double>::quiet_NaN()) {
  model_->set_dropout_rate(config_.train.dropout);
  state_.data_hash = data_.hash;
  state_.ranks = world_size();
  if (hooks_.ranks != nullptr) {
    replicas_ = std::make_unique<DataParallel>(*hooks_.ranks, model_);
  }
  if (config_.step.contrastive_every > 0 && data_.dataset.has_classes()) {
    pairs_.emplace(data_.dataset, ContrastiveOptions{.batch_rows = config_.train.contrastive_rows,
                                                     .seed = config_.train.seed});
    if (pairs_->query_count() < 2) {
      pairs_.reset();  // no negatives, no loss
    }
  }
}

std::int64_t Trainer::batches_per_epoch() const {
  const SamplerOptions options = sampler_options();
  return (options.row_count + options.batch_rows - 1) / options.batch_rows;
}

std::int64_t Trainer::steps_per_epoch() const {
  const std::int64_t accumulation = config_.train.grad_accumulation;
  return (batches_per_epoch() + accumulation - 1) / accumulation;
}

// The reference's rule where every rank adds a batch of its own.
OptimizerConfig Trainer::optimizer_config() const {
  OptimizerConfig config = config_.optimizer;
  if (config_.train.batch_scope == BatchScope::kRank) {
    const auto world = static_cast<double>(world_size());
    config.adam.peak_lr *= world;
    config.muon.peak_lr *= std::sqrt(world);
  }
  return config;
}

// What `find` says on the first rank, on all of them.
std::optional<CheckpointRef> Trainer::agreed_checkpoint(
    const std::function<std::optional<CheckpointRef>(std::vector<std::string>& warnings)>& find)
    const {
  std::vector<std::string> warnings;
  std::optional<CheckpointRef> checkpoint;
  if (is_first()) {
    checkpoint = find(warnings);
  }
  for (const std::string& warning : warnings) {
    log_warning("{}", warning);
  }
  if (hooks_.ranks != nullptr) {
    const std::string step =
        hooks_.ranks->broadcast(checkpoint ? std::to_string(checkpoint->step) : std::string());
    if (!step.empty()) {
      const std::int64_t number = std::stoll(step);
      checkpoint = CheckpointRef{.step = number, .path = checkpoints_.path_of(number)};
    }
  }
  return checkpoint;
}

bool Trainer::resume() {
  const auto checkpoint = agreed_checkpoint(
      [&](std::vector<std::string>& warnings) { return checkpoints_.newest_valid(warnings); });
  if (!checkpoint) {
    log_info("{}: no checkpoint to go on from, the run begins", config_.output);
    return false;
  }
  const fs::path& folder = checkpoint->path;
  const fs::path config_path = folder / "config.json";
  check_same_run(from_json<RunConfig>(read_json_file(config_path), config_path.string()), config_);
  load_checkpoint(folder);
  mark_best_again();
  log_info("going on from {} (step {} of {})", folder, state_.step, state_.total_steps);
  return true;
}

// A crash may have come between a checkpoint and its mark, or a roll-back may have removed it.
void Trainer::mark_best_again() {
  if (!state_.best_score) {
    return;
  }
  if (!fs::exists(checkpoints_.path_of(state_.best_step))) {
    state_.best_score.reset();
  } else if (is_first()) {
    checkpoints_.mark_best(state_.best_step);
  }
}

void Trainer::load_checkpoint(const fs::path& folder) {
  const fs::path state_path = folder / "state.json";
  state_ = from_json<TrainState>(read_json_file(state_path), state_path.string());
  if (state_.data_hash != data_.hash) {
    throw DataError(format(
        "{}: the training data has changed since this checkpoint was written; bring the old files "
        "back, or begin another run with --output",
        folder));
  }
  const std::int64_t world = world_size();
  if (state_.ranks != world && config_.train.batch_scope == BatchScope::kRank) {
    throw ConfigError(
        format("{} was trained by {} processes with train.batch_scope=rank: go on with as many, or "
               "begin with train.batch_scope=global, which may change their number",
               folder, state_.ranks));
  }
  state_.ranks = world;
  load_model_parameters(model_, folder / "model.safetensors");
  make_optimizer();
  const NamedTensors saved = load_tensors(folder / "optimizer.safetensors");
  optimizer_->load_state_dict(replicas_ ? replicas_->own_part(saved) : saved);
  saved_step_ = state_.step;
}

void Trainer::make_optimizer() {
  if (replicas_) {
    optimizer_.emplace(replicas_->make_optimizer(optimizer_config(), state_.total_steps));
  } else {
    optimizer_.emplace(model_, optimizer_config(), state_.total_steps);
  }
}

TrainSummary Trainer::run() {
  begin();
  {
    std::optional<Progress> progress;
    if (is_first()) {
      progress.emplace("training", static_cast<std::uint64_t>(state_.total_steps), "steps");
      progress->set(static_cast<std::uint64_t>(state_.step));
    }
    if (state_.validation_due && state_.spike.since == 0) {  // stopped while it validated
      state_.validation_due = false;
      validate();
      if (state_.validation_due) {
        throw_stopped();
      }
    }
    bool stop = false;
    while (state_.step < state_.total_steps) {
      stop |= advance(stop);
      if (!go_back_if_bad()) {
        validate_and_save_when_due();
      }
      if (progress) {
        progress->set(static_cast<std::uint64_t>(state_.step));
      }
      const bool left_validation = state_.validation_due && state_.spike.since == 0;
      stop |= left_validation || (!replicas_ && hooks_.should_stop && hooks_.should_stop());
      if (stop && launched_.empty()) {  // a step that is on its way is waited for
        throw_stopped();
      }
    }
  }
  if (hooks_.ranks != nullptr) {
    hooks_.ranks->barrier();  // the last checkpoint is there for all
  }
  const auto tokens = static_cast<double>(state_.source_tokens + state_.target_tokens);
  const std::vector<CheckpointRef> all = checkpoints_.list();
  const fs::path last = all.empty() ? fs::path() : all.back().path;
  const auto best = checkpoints_.best();
  if (is_first()) {
    write_loss_chart(config_.output, format("Training loss, {}", config_.output.filename()));
  }
  return {.steps = state_.step,
          .skipped = state_.skipped_total,
          .rollbacks = state_.rollbacks,
          .last_loss = last_loss_,
          .seconds = state_.seconds,
          .tokens_per_second = state_.seconds > 0.0 ? tokens / state_.seconds : 0.0,
          .best_score = state_.best_score,
          .last_checkpoint = last,
          .best_checkpoint = best ? best->path : last};
}

void Trainer::throw_stopped() {
  save();
  if (hooks_.ranks != nullptr) {
    hooks_.ranks->barrier();  // no rank calls saved what the first one could not save
  }
  throw Interrupted(
      format("stopped after step {} of {}; everything is saved in {}: go on with --resume",
             state_.step, state_.total_steps, config_.output));
}

void Trainer::begin() {
  if (config_.train.micro_batch.is_auto && state_.micro_batch == 0) {
    state_.micro_batch = find_micro_batch();
  }
  if (state_.total_steps == 0) {
    state_.total_steps = planned_steps();
  }
  if (!optimizer_) {
    make_optimizer();
  }
  make_train_step();
  if (is_first()) {
    fs::create_directories(config_.output);
    write_json_file(config_.output / "config.json", config_json());
    metrics_.emplace(config_.output, state_.step, state_.rollbacks);
  }
}

void Trainer::make_train_step() {
  launched_.clear();
  train_step_.emplace(model_, *optimizer_, config_.step, device_, config_.train.seed,
                      hooks_.ranks != nullptr ? hooks_.ranks->rank() : 0, replicas_.get());
  if (config_.train.record_steps) {
    train_step_->record_steps();
  }
}

std::int64_t Trainer::planned_steps() {
  if (config_.train.time_budget_s > 0.0) {
    return steps_in(config_.train.time_budget_s);
  }
  return config_.train.max_steps > 0 ? config_.train.max_steps
                                     : config_.train.epochs * steps_per_epoch();
}

// Takes a few real steps to see how long one is, and takes them back. The first is slower than the
// rest, so it does not count.
std::int64_t Trainer::steps_in(double seconds) {
  constexpr int kProbes = 5;
  const NamedTensors before = copied_parameters(model_);
  const auto start = Clock::now();
  double probe_seconds = 0.0;
  {
    Optimizer optimizer = replicas_ ? replicas_->make_optimizer(optimizer_config(), kProbes + 1)
                                    : Optimizer(model_, optimizer_config(), kProbes + 1);
    TrainStep step(model_, optimizer, config_.step, device_, config_.train.seed, /*rank=*/0,
                   replicas_.get());
    Sampler sampler(sampler_options());
    auto probe_start = Clock::now();
    for (int i = 0; i <= kProbes; ++i) {
      const StepBatches batches = next_batches(sampler);
      step.run(i, batches.batches, nullptr, replicas_ ? &batches.counts : nullptr);
      if (i == 0) {
        probe_start = Clock::now();
      }
    }
    probe_seconds = seconds_since(probe_start) / kProbes;
    optimizer.zero_grad();
  }
  assign_parameters(model_, before, "training");
  auto steps = static_cast<std::int64_t>((seconds - seconds_since(start)) / probe_seconds);
  if (hooks_.ranks != nullptr) {
    steps = std::stoll(hooks_.ranks->broadcast(std::to_string(steps)));
  }
  log_info("{:.3f} s a step: {} steps fit into {} s", probe_seconds,
           std::max<std::int64_t>(steps, 1), seconds);
  return std::max<std::int64_t>(steps, 1);
}

// The micro-batches of one step. They stop at the end of an epoch, so that every epoch has the same
// steps.
Trainer::StepBatches Trainer::next_batches(Sampler& sampler) const {
  StepBatches step;
  std::int64_t taken = 0;
  do {
    std::vector<std::int64_t> rows = sampler.next();
    for (std::int64_t& row : rows) {
      row = data_.rows[static_cast<std::size_t>(row)];
    }
    add_slice(rows, step);
  } while (++taken < config_.train.grad_accumulation && !sampler.at_epoch_start());
  return step;
}

// This rank's rows of a batch, padded as the whole batch would be: padding has a part in the
// z-loss.
void Trainer::add_slice(std::span<const std::int64_t> rows, StepBatches& step) const {
  BatchLengths lengths = data_.dataset.batch_lengths(rows);
  if (config_.train.record_steps) {
    const PromptConfig& prompt = config_.data.rows.prompt;
    lengths = {.enc_len = std::max(lengths.enc_len, prompt.max_enc_len),
               .dec_len = std::max(lengths.dec_len, prompt.max_dec_len)};
  }
  step.counts.positions += static_cast<std::int64_t>(rows.size()) * lengths.dec_len;
  for (const std::int64_t row : rows) {
    step.counts.target_tokens += data_.dataset.row_target_tokens(row);
  }
  const auto world = static_cast<std::size_t>(world_size());
  const auto rank = static_cast<std::size_t>(hooks_.ranks != nullptr ? hooks_.ranks->rank() : 0);
  const std::size_t first = rank * rows.size() / world;
  const std::size_t last = (rank + 1) * rows.size() / world;
  const CountOrAuto& asked = config_.train.micro_batch;
  const std::int64_t limit = asked.is_auto ? state_.micro_batch : asked.count;
  const std::size_t most = limit > 0 ? static_cast<std::size_t>(limit) : rows.size();
  for (std::size_t begin = first; begin < last; begin += most) {  // fewer rows than ranks: none
    step.batches.push_back(
        data_.dataset.batch(rows.subspan(begin, std::min(most, last - begin)),
                            {.enc_len = lengths.enc_len, .dec_len = lengths.dec_len}));
  }
}

// Runs on the reader's thread: touches nothing that the loop changes.
Trainer::StepData Trainer::next_data(Sampler& sampler, std::int64_t step) const {
  StepData data{.step = next_batches(sampler), .pairs = std::nullopt, .sampler = sampler.state()};
  const std::int64_t every = config_.step.contrastive_every;
  if (pairs_ && is_contrastive_step(every, step)) {
    const bool own = replicas_ && config_.train.batch_scope == BatchScope::kRank;
    data.pairs = pairs_->batch(step, own ? hooks_.ranks->rank() : 0);
  }
  return data;
}

// The next step's data, which a thread puts together while the steps before it run.
Trainer::StepData Trainer::wait_for_data() {
  constexpr std::size_t kStepsAhead = 2;
  RECORD_USER_SCOPE("step: wait for data");
  if (!feed_) {
    feed_.emplace([this, sampler = Sampler(sampler_options(), state_.sampler),
                   step = state_.step]() mutable { return next_data(sampler, step++); },
                  kStepsAhead);
  }
  return feed_->next();
}

// Asks for the next step.
void Trainer::launch() {
  const auto start = Clock::now();
  const StepData data = wait_for_data();
  const double wait_seconds = seconds_since(start);
  const std::int64_t step = state_.step + std::ssize(launched_);
  optimizer_->set_lr_scale(step < state_.lr_scale_until ? state_.lr_scale : 1.0);
  auto report = run_step(step, data.step, data.pairs ? &*data.pairs : nullptr);
  launched_.push_back({.sampler = data.sampler,
                       .report = std::move(report),
                       .wait_seconds = wait_seconds,
                       .seconds = seconds_since(start)});
}

// While one step is on its way: not when something is to be done with the parameters after it.
bool Trainer::may_launch_another() const {
  const std::int64_t step = state_.step + 1;
  return step < state_.total_steps &&
         !is_due(config_.train.validate_every, step, launched_.front().sampler) &&
         !is_due(config_.train.checkpoint_every, step, launched_.front().sampler) &&
         !state_.validation_due && !state_.checkpoint_due && state_.spike.since == 0;
}

// Takes a step (`last`: asks for no other behind it). Returns whether the ranks agreed to stop.
bool Trainer::advance(bool last) {
  if (replicas_) {
    replicas_->want_stop(hooks_.should_stop && hooks_.should_stop());
  }
  if (launched_.empty()) {
    launch();
  }
  if (!launched_.front().report && !last && may_launch_another()) {
    launch();
  }
  Launched now = std::move(launched_.front());
  launched_.pop_front();
  if (!now.report) {
    const auto start = Clock::now();
    now.report = train_step_->finish();
    now.seconds += seconds_since(start);
  }
  note(now);
  if (hooks_.ranks != nullptr) {
    hooks_.ranks->finished_step();
  }
  return now.report->stop;
}

// `launched` has its report by now.
void Trainer::note(const Launched& launched) {
  const StepReport& report = *launched.report;
  const double step_seconds = launched.seconds;
  const std::int64_t tokens = report.source_tokens + report.target_tokens;
  ++state_.step;
  state_.sampler = launched.sampler;
  state_.source_tokens += report.source_tokens;
  state_.target_tokens += report.target_tokens;
  state_.seconds += step_seconds;
  state_.skipped_total += report.skipped ? 1 : 0;
  state_.skipped_in_a_row = report.skipped ? state_.skipped_in_a_row + 1 : 0;
  last_loss_ = report.skipped ? last_loss_ : report.loss;
  seconds_since_log_ += step_seconds;
  tokens_since_log_ += tokens;

  static const double peak_flops = 1e9 * product_gflops(model_->compute_dtype(), device_);
  StepRecord record{.step = state_.step,
                    .total_steps = state_.total_steps,
                    .epoch = static_cast<double>(state_.sampler.epoch) +
                             static_cast<double>(state_.sampler.position) /
                                 static_cast<double>(batches_per_epoch()),
                    .loss = report.loss,
                    .cross_entropy = report.cross_entropy,
                    .z_loss = report.z,
                    .contrastive = report.contrastive,
                    .adam_lr = report.lr_adam,
                    .muon_lr = report.lr_muon,
                    .grad_norm = report.grad_norm,
                    .target_tokens = report.target_tokens,
                    .skipped = report.skipped,
                    .skipped_total = state_.skipped_total,
                    .tokens_per_second = static_cast<double>(tokens) / step_seconds,
                    .utilization = report.flops / step_seconds / peak_flops,
                    .data_wait_ms = 1e3 * launched.wait_seconds,
                    .seconds = state_.seconds};
  if (metrics_) {
    metrics_->write(record);
  }
  if (state_.step % config_.train.log_every == 0 || state_.step == state_.total_steps) {
    record.tokens_per_second = static_cast<double>(tokens_since_log_) / seconds_since_log_;
    seconds_since_log_ = 0.0;
    tokens_since_log_ = 0;
    log_info("{}", record.console_line());
    announce(record.to_json());
  }
  const std::string spike = note_step(config_.train.spike,
                                      {.step = state_.step,
                                       .skipped = report.skipped,
                                       .loss = report.loss,
                                       .grad_norm = report.grad_norm,
                                       .max_grad_norm = config_.optimizer.max_grad_norm},
                                      state_.spike);
  if (report.skipped) {
    complaint_ = report.skip_reason;
    log_warning("step {} skipped: {} ({} in a row)", state_.step, complaint_,
                state_.skipped_in_a_row);
  } else if (!spike.empty()) {
    complaint_ = spike;
    log_warning("step {}: {} ({} of {} before the run goes back)", state_.step, spike,
                state_.spike.spikes, config_.train.spike.steps);
  }
}

// While the loss is not as usual nothing is saved that a roll-back would have to remove, and
// nothing validated: both follow as soon as it is.
void Trainer::validate_and_save_when_due() {
  const bool last = state_.step == state_.total_steps;
  state_.validation_due |=
      last || is_due(config_.train.validate_every, state_.step, state_.sampler);
  state_.checkpoint_due |=
      last || is_due(config_.train.checkpoint_every, state_.step, state_.sampler);
  if (state_.spike.since > 0 && !last) {
    return;
  }
  const bool validation_due = std::exchange(state_.validation_due, false);
  const bool checkpoint_due = std::exchange(state_.checkpoint_due, false);
  if (validation_due && hooks_.validate) {
    validate();
  }
  if (checkpoint_due) {
    save();
  }
}

void Trainer::validate() {
  const auto start = Clock::now();
  ValidationRecord record{.step = state_.step};
  try {
    record.scores = hooks_.validate();
  } catch (const Interrupted&) {
    state_.validation_due = true;  // the first thing that the resumed run does
    return;
  }
  record.seconds = seconds_since(start);
  if (metrics_) {
    metrics_->write(record);
  }
  log_info("{}", record.console_line());
  announce(record.to_json());
  for (const auto& [name, score] : record.scores) {
    if (name != hooks_.best_score || !std::isfinite(score)) {
      continue;
    }
    // Of two equal scores the later one counts: it has seen more.
    const bool better =
        !state_.best_score ||
        (hooks_.lower_is_better ? score < *state_.best_score : score >= *state_.best_score);
    if (better) {
      state_.best_score = score;
      state_.best_step = state_.step;
      save();
      if (is_first()) {
        checkpoints_.mark_best(state_.step);
      }
    }
  }
}

void Trainer::save() {
  if (saved_step_ == state_.step) {
    return;
  }
  NamedTensors whole;  // on several ranks each has its part
  if (replicas_) {
    replicas_->check_equal_parameters();
    whole = replicas_->gather_state(*optimizer_);
  }
  saved_step_ = state_.step;
  if (!is_first()) {
    return;
  }
  const fs::path path = checkpoints_.save(state_.step, [&](const fs::path& folder) {
    write_saved_model(folder, model_, tokenizer_, serving_prompt(config_));
    save_tensors(folder / "optimizer.safetensors", replicas_ ? whole : optimizer_->state_dict());
    write_json_file(folder / "state.json", to_json(state_));
    write_json_file(folder / "config.json", config_json());
  });
  announce({{"kind", "checkpoint"}, {"step", state_.step}, {"path", path.string()}});
}

// Behind `step` of the run, with the data where `sampler` says.
bool Trainer::is_due(std::int64_t every, std::int64_t step, const SamplerState& sampler) {
  return every > 0 ? step % every == 0 : sampler.position == 0;
}

void Trainer::announce(Json record) const {
  if (hooks_.on_record && is_first()) {
    hooks_.on_record(record);
  }
}

Json Trainer::config_json() const { return to_json(config_); }

}  // namespace needle
