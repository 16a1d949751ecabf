// Notices when training goes wrong: a loss or gradient norm that leaves what is usual and stays
// there. What then follows, the roll-back, is the trainer's (trainer.h).
//
// Usual is a median and a median absolute deviation over the latest good steps: single outliers
// move neither, and a loss that falls moves both along (Huber, "Robust Statistics", 1981).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace needle {

struct SpikeConfig {
  bool enabled = true;
  std::int64_t window = 100;
  std::int64_t min_steps = 50;
  double deviations = 6.0;
  double loss_rise = 0.5;
  double grad_norm_factor = 10.0;
  std::int64_t steps = 5;
  double lr_factor = 0.5;
  std::int64_t lr_steps = 200;
  std::int64_t max_rollbacks = 5;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("enabled", self.enabled,
          "Go back to the last good checkpoint when loss or gradient norm leave what is usual, or "
          "max_bad_steps in a row were skipped; false: never");
    visit("window", self.window, "What is usual: so many of the latest good steps");
    visit("min_steps", self.min_steps, "Judge once so many good steps are known");
    visit("deviations", self.deviations,
          "A spike lies so many robust standard deviations above the median");
    visit("loss_rise", self.loss_rise, "And a loss at least so much above it");
    visit("grad_norm_factor", self.grad_norm_factor,
          "A gradient norm at least so many times its median, and above optimizer.max_grad_norm; "
          "0: gradient norms are not judged");
    visit("steps", self.steps, "Spikes without a good step between that make the run go back");
    visit("lr_factor", self.lr_factor,
          "Learning rates afterwards, as a part of the schedule's; another roll-back in this time "
          "multiplies again");
    visit("lr_steps", self.lr_steps, "For so many steps; 0: for the rest of the run");
    visit("max_rollbacks", self.max_rollbacks, "Roll-backs of a run before it ends with an error");
  }
};

// What is remembered between steps: plain numbers, saved with every checkpoint.
struct SpikeState {
  std::vector<double> losses;      // of the latest good steps, oldest first
  std::vector<double> grad_norms;  // likewise, as natural logarithms
  std::int64_t spikes = 0;         // without a good step between
  std::int64_t since = 0;  // number of the first step of those that were not good; 0: all is well

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("losses", self.losses, "Of the latest good steps");
    visit("grad_norms", self.grad_norms, "Likewise, as logarithms");
    visit("spikes", self.spikes, "Spikes without a good step between");
    visit("since", self.since, "First of the steps that were not good; 0: none");
  }
};

// One step as the detector sees it.
struct StepFigures {
  std::int64_t step = 0;       // counted from 1
  bool skipped = false;        // something was not finite; then the rest does not count
  double loss = 0.0;           // finite
  double grad_norm = 0.0;      // finite, before clipping
  double max_grad_norm = 0.0;  // what it is clipped to; 0: never
};

// Adds a step to `state`. Returns what is wrong with it ("the loss 7.1 is far above the
// usual 3.2"), empty for a good or a skipped one. Follows from its arguments alone, so that ranks
// with the same figures decide alike.
std::string note_step(const SpikeConfig& config, const StepFigures& figures, SpikeState& state);

// Whether it is time to go back: config.steps spikes without a good step between.
bool has_spiked(const SpikeConfig& config, const SpikeState& state);

}  // namespace needle
