#include "needle/train/spike.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "needle/core/error.h"

namespace needle {
namespace {

// Upper median; `values` may be reordered.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Usual {
  double median = 0.0;
  double deviation = 0.0;  // that of a normal distribution with the same quartiles
};

Usual usual(const std::vector<double>& values) {
  constexpr double kNormal = 1.4826;  // standard deviation / median absolute deviation
  Usual result{.median = median(values)};
  std::vector<double> distances;
  for (const double value : values) {
    distances.push_back(std::abs(value - result.median));
  }
  result.deviation = kNormal * median(std::move(distances));
  return result;
}

std::string what_is_wrong(const SpikeConfig& config, const StepFigures& figures,
                          const SpikeState& state, double log_norm) {
  if (static_cast<std::int64_t>(state.losses.size()) < config.min_steps) {
    return "";
  }
  const Usual loss = usual(state.losses);
  if (figures.loss > loss.median + std::max(config.deviations * loss.deviation, config.loss_rise)) {
    return format("the loss {:.4g} is far above the usual {:.4g}", figures.loss, loss.median);
  }
  if (config.grad_norm_factor <= 0.0 || figures.grad_norm <= figures.max_grad_norm) {
    return "";
  }
  const Usual norm = usual(state.grad_norms);
  const double rise =
      std::max(config.deviations * norm.deviation, std::log(config.grad_norm_factor));
  if (log_norm > norm.median + rise) {
    return format("the gradient norm {:.4g} is far above the usual {:.4g}", figures.grad_norm,
                  std::exp(norm.median));
  }
  return "";
}

void remember(double value, std::int64_t count, std::vector<double>& values) {
  values.push_back(value);
  const auto extra = static_cast<std::int64_t>(values.size()) - count;
  if (extra > 0) {
    values.erase(values.begin(), values.begin() + extra);
  }
}

}  // namespace

std::string note_step(const SpikeConfig& config, const StepFigures& figures, SpikeState& state) {
  if (!config.enabled) {
    return "";
  }
  // A norm of zero has no logarithm; nothing lies below it.
  const double log_norm = std::log(std::max(figures.grad_norm, std::numeric_limits<double>::min()));
  std::string wrong = figures.skipped ? "" : what_is_wrong(config, figures, state, log_norm);
  if (figures.skipped || !wrong.empty()) {
    state.spikes += figures.skipped ? 0 : 1;
    state.since = state.since > 0 ? state.since : figures.step;
    return wrong;
  }
  state.spikes = 0;
  state.since = 0;
  remember(figures.loss, config.window, state.losses);
  remember(log_norm, config.window, state.grad_norms);
  return "";
}

bool has_spiked(const SpikeConfig& config, const SpikeState& state) {
  return config.enabled && state.spikes >= config.steps;
}

}  // namespace needle
