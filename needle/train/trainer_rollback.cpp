// The trainer's way back from a loss that spiked or numbers that stopped being finite.
#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/train/trainer.h"

namespace needle {

// After a step. Returns whether the run went back. All ranks have the same figures and come to the
// same decision.
bool Trainer::go_back_if_bad() {
  const SpikeConfig& spike = config_.train.spike;
  const bool not_finite = state_.skipped_in_a_row >= config_.train.max_bad_steps;
  if (!not_finite && !has_spiked(spike, state_.spike)) {
    return false;
  }
  const std::string reason =
      not_finite ? format("{} steps in a row had to be skipped, the last because {}",
                          state_.skipped_in_a_row, complaint_)
                 : format("{}, and {} steps were so", complaint_, state_.spike.spikes);
  const bool allowed = spike.enabled && state_.rollbacks < spike.max_rollbacks;
  if (const auto checkpoint = allowed ? last_good_checkpoint() : std::nullopt) {
    roll_back(*checkpoint, reason);
    return true;
  }
  if (!not_finite && allowed) {
    log_warning(
        "step {}: {}; there is no checkpoint to go back to yet, so the run goes on and takes this "
        "as "
        "usual (train.checkpoint_every)",
        state_.step, reason);
    state_.spike = {};
    return false;
  }
  throw Error(
      format("stopped: {}{}; {}. Lower the learning rates (optimizer.adam.peak_lr, "
             "optimizer.muon.peak_lr) or look at the data",
             reason,
             state_.rollbacks > 0
                 ? format(", after {} roll-backs (train.spike.max_rollbacks)", state_.rollbacks)
                 : "",
             saved_step_ >= 0 ? format("the checkpoint of step {} is kept", saved_step_)
                              : "no checkpoint was written yet"));
}

// A checkpoint is good if the step after it was: that one's loss is the loss of its parameters. If
// there is none, one from which the first bad step came must do: it may have been the data.
std::optional<CheckpointRef> Trainer::last_good_checkpoint() const {
  return agreed_checkpoint([&](std::vector<std::string>& warnings) {
    auto found = checkpoints_.newest_valid(warnings, state_.spike.since - 2);
    return found ? found : checkpoints_.newest_valid(warnings, state_.spike.since - 1);
  });
}

void Trainer::roll_back(const CheckpointRef& checkpoint, const std::string& reason) {
  const TrainState bad = state_;
  feed_.reset();  // reads what changes here, and begins again at another step
  if (is_first()) {
    checkpoints_.remove_after(checkpoint.step);
  }
  if (hooks_.ranks != nullptr) {
    hooks_.ranks->barrier();  // what the others find is what stays
  }
  load_checkpoint(checkpoint.path);
  mark_best_again();
  // The past is undone, but not the data: the batches in between are not seen again.
  state_.sampler = bad.sampler;
  state_.skipped_total = bad.skipped_total;
  state_.skipped_in_a_row = 0;
  state_.source_tokens = bad.source_tokens;
  state_.target_tokens = bad.target_tokens;
  state_.seconds = bad.seconds;
  state_.micro_batch = bad.micro_batch;
  state_.rollbacks = bad.rollbacks + 1;
  const SpikeConfig& spike = config_.train.spike;
  const bool reduced_already = state_.step < bad.lr_scale_until;
  state_.lr_scale = spike.lr_factor * (reduced_already ? bad.lr_scale : 1.0);
  state_.lr_scale_until = spike.lr_steps > 0 ? state_.step + spike.lr_steps : state_.total_steps;
  make_train_step();

  const RollbackRecord record{.step = state_.step,
                              .from_step = bad.step,
                              .reason = reason,
                              .rollbacks = state_.rollbacks,
                              .lr_scale = state_.lr_scale,
                              .lr_scale_until = state_.lr_scale_until};
  if (metrics_) {
    metrics_->write(record);
  }
  log_warning(
      "step {}: {}; back to the checkpoint of step {} (roll-back {} of {}), on with the data that "
      "follows and {:.3g} of the learning rates until step {}",
      bad.step, reason, state_.step, state_.rollbacks, spike.max_rollbacks, state_.lr_scale,
      state_.lr_scale_until);
  announce(record.to_json());
}

}  // namespace needle
