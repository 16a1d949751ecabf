// The greedy choice, alike wherever tokens are chosen.
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>

#include "needle/core/error.h"
#include "needle/text/special_tokens.h"

namespace needle {

// The lowest id on a tie; NaN never wins. Throws Error if every logit is NaN.
inline TokenId argmax(std::span<const float> logits) {
  std::optional<std::size_t> best;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (best ? logits[id] > logits[*best] : !std::isnan(logits[id])) {
      best = id;
    }
  }
  if (!best) {
    throw Error("no logit of the model is a number: its weights are damaged or have diverged");
  }
  return static_cast<TokenId>(*best);
}

}  // namespace needle
