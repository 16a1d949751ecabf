// The learning rate over a run: warmup, stable, decay. Specification, section 7.
#pragma once

#include <cstdint>
#include <optional>

namespace needle {

struct ScheduleConfig {
  double warmup_ratio = 0.05;
  double decay_ratio = 0.05;
  double final_ratio = 0.05;
  std::optional<std::int64_t> warmup_steps;
  std::optional<std::int64_t> decay_steps;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("warmup_ratio", self.warmup_ratio, "Part of the run that climbs from 0 to the peak");
    visit("decay_ratio", self.decay_ratio,
          "Part of the run that falls from the peak, along a cosine");
    visit("final_ratio", self.final_ratio, "Rate at the end, as a part of the peak");
    visit("warmup_steps", self.warmup_steps, "Steps of warmup; overrides warmup_ratio");
    visit("decay_steps", self.decay_steps, "Steps of decay; overrides decay_ratio");
  }
};

// max(1, trunc(ratio * total_steps)).
std::int64_t ratio_to_steps(double ratio, std::int64_t total_steps);

// A value: copy freely, safe from several threads.
class Schedule {
 public:
  // Throws ConfigError if a ratio is outside [0, 1], a number of steps below 1 or total_steps
  // negative.
  Schedule(const ScheduleConfig& config, std::int64_t total_steps);

  // Part of the peak rate for the update that follows `updates_done` others, so 0 for the first
  // one:
  //   linear 0 -> 1 over warmup_steps, 1, cosine 1 -> final_ratio over the last decay_steps,
  //   final_ratio ever after.
  // Decay is tested first: it wins in runs too short for all three parts.
  double scale(std::int64_t updates_done) const;

  std::int64_t total_steps() const { return total_steps_; }
  std::int64_t warmup_steps() const { return warmup_steps_; }
  std::int64_t decay_steps() const { return decay_steps_; }

 private:
  std::int64_t total_steps_;
  std::int64_t warmup_steps_;
  std::int64_t decay_steps_;
  double final_ratio_;
};

}  // namespace needle
