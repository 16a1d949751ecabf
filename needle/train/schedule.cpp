#include "needle/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

#include "needle/core/error.h"

namespace needle {
namespace {

void check_ratio(std::string_view name, double ratio) {
  if (!(ratio >= 0.0 && ratio <= 1.0)) {
    throw ConfigError(
        format("schedule.{} = {}: give a part of the run between 0 and 1", name, ratio));
  }
}

void check_steps(std::string_view name, const std::optional<std::int64_t>& steps) {
  if (steps && *steps < 1) {
    throw ConfigError(format("schedule.{} = {}: give at least 1, or leave it out", name, *steps));
  }
}

}  // namespace

std::int64_t ratio_to_steps(double ratio, std::int64_t total_steps) {
  return std::max<std::int64_t>(
      1, static_cast<std::int64_t>(ratio * static_cast<double>(total_steps)));
}

Schedule::Schedule(const ScheduleConfig& config, std::int64_t total_steps)
    : total_steps_(total_steps), final_ratio_(config.final_ratio) {
  check_ratio("warmup_ratio", config.warmup_ratio);
  check_ratio("decay_ratio", config.decay_ratio);
  check_ratio("final_ratio", config.final_ratio);
  check_steps("warmup_steps", config.warmup_steps);
  check_steps("decay_steps", config.decay_steps);
  if (total_steps < 0) {
    throw ConfigError(format("a run of {} steps: give 0 or more", total_steps));
  }
  warmup_steps_ = config.warmup_steps.value_or(ratio_to_steps(config.warmup_ratio, total_steps));
  decay_steps_ = config.decay_steps.value_or(ratio_to_steps(config.decay_ratio, total_steps));
}

double Schedule::scale(std::int64_t updates_done) const {
  const std::int64_t decay_start = total_steps_ - decay_steps_;
  if (updates_done >= decay_start) {
    const double progress = std::min(
        1.0, static_cast<double>(updates_done - decay_start) / static_cast<double>(decay_steps_));
    const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    return final_ratio_ + (1.0 - final_ratio_) * cosine;
  }
  return std::min(1.0, static_cast<double>(updates_done) / static_cast<double>(warmup_steps_));
}

}  // namespace needle
