// Where a run is: with the parameters and the optimiser's state, all that a resumed run needs to go
// on bit for bit. Random draws need no state of their own: they follow from the seed and the step
// (core/random.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "needle/data/sampler.h"
#include "needle/train/spike.h"

namespace needle {

struct TrainState {
  std::int64_t step = 0;
  std::int64_t total_steps = 0;
  SamplerState sampler;
  std::string data_hash;
  std::int64_t skipped_total = 0;
  std::int64_t skipped_in_a_row = 0;
  std::int64_t source_tokens = 0;
  std::int64_t target_tokens = 0;
  double seconds = 0.0;
  std::optional<double> best_score;
  std::int64_t best_step = 0;
  std::int64_t ranks = 1;
  SpikeState spike;
  std::int64_t rollbacks = 0;
  double lr_scale = 1.0;
  std::int64_t lr_scale_until = 0;
  bool validation_due = false;
  bool checkpoint_due = false;
  std::int64_t micro_batch = 0;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("step", self.step, "Steps done, skipped ones included");
    visit("total_steps", self.total_steps, "Length of the schedule, fixed when the run began");
    visit("sampler", self.sampler, "Place in the data");
    visit("data_hash", self.data_hash, "Content of the training data");
    visit("skipped_total", self.skipped_total, "Steps skipped because a number was not finite");
    visit("skipped_in_a_row", self.skipped_in_a_row,
          "Of these, the latest without a good one between");
    visit("source_tokens", self.source_tokens, "Encoder tokens trained on");
    visit("target_tokens", self.target_tokens, "Decoder tokens trained on");
    visit("seconds", self.seconds, "Time spent in training steps");
    visit("best_score", self.best_score, "Best validation score so far");
    visit("best_step", self.best_step, "Step of the best checkpoint");
    visit("ranks", self.ranks, "Processes that trained it, at the last checkpoint");
    visit("spike", self.spike, "What loss and gradient norm usually are");
    visit("rollbacks", self.rollbacks, "Returns to an earlier checkpoint so far");
    visit("lr_scale", self.lr_scale,
          "Learning rates after a roll-back, as a part of the schedule's");
    visit("lr_scale_until", self.lr_scale_until, "The step from which they are whole again");
    visit("validation_due", self.validation_due, "Put off until the loss is as usual, or stopped");
    visit("checkpoint_due", self.checkpoint_due, "Likewise");
    visit("micro_batch", self.micro_batch, "Rows in one pass that were found to fit; 0: not asked");
  }
};

}  // namespace needle
