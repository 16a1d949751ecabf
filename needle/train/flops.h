// How many floating-point operations the products of a training step are, by the equations: two for
// a multiplication with its addition, the backward pass twice the forward pass. What a trick saves
// counts as done; padding does not count.
#pragma once

#include <cstdint>

#include "needle/data/batch.h"
#include "needle/quant/model_config.h"

namespace needle {

// Tokens, and pairs of tokens that may meet in attention (a causal mask halves nothing).
struct StepWork {
  double enc_tokens = 0.0;
  double dec_tokens = 0.0;
  double enc_pairs = 0.0;
  double dec_pairs = 0.0;
  double cross_pairs = 0.0;
};
StepWork work_of(const Batch& batch);

double model_flops(const ModelConfig& config, const StepWork& work);

// Newton-Schulz over all kernels, of one step.
double muon_flops(const ModelConfig& config, std::int64_t newton_schulz_steps);

}  // namespace needle
