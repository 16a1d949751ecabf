#include "needle/decode/calibration.h"

#include <algorithm>
#include <cmath>

namespace needle {

double log_odds(double probability) {
  constexpr double kLeast = 1e-9;
  const double p = std::clamp(probability, kLeast, 1 - kLeast);
  return std::log(p) - std::log1p(-p);
}

double calibrated(const PlattScale& scale, double probability) {
  if (scale.examples == 0) {
    return probability;
  }
  return 1 / (1 + std::exp(-(scale.slope * log_odds(probability) + scale.intercept)));
}

}  // namespace needle
