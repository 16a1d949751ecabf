// Validation perplexity, with and without quantised kernels. Specification, section 5.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <torch/torch.h>

#include "needle/data/batch.h"
#include "needle/model/needle.h"
#include "needle/train/ranks.h"

namespace needle {

struct PerplexityReport {
  std::vector<double>
      perplexity;           // exp(min(sum of cross-entropy / tokens, 20)), one per mode asked for
  std::int64_t tokens = 0;  // non-pad targets
};

// Fills `batch` and returns true, or returns false at the end.
using BatchSource = std::function<bool(Batch& batch)>;

// Unweighted cross-entropy without z-loss over all batches, under each of `modes`; the sums are
// float64. Runs in evaluation mode without gradients and leaves the model as it was. Throws
// DataError if there is not a single target token: there is no perplexity then, not one of 1.
// `ranks`: each brings batches of its own, and the report is of all of them together.
PerplexityReport measure_perplexity(Needle model, const torch::Device& device,
                                    const BatchSource& next_batch, std::span<const FakeQuant> modes,
                                    Ranks* ranks = nullptr);
PerplexityReport measure_perplexity(Needle model, const torch::Device& device,
                                    std::span<const Batch> batches,
                                    std::span<const FakeQuant> modes);

}  // namespace needle
