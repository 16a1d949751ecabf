#include "needle/train/perplexity.h"

#include <algorithm>
#include <cmath>

#include "needle/core/error.h"
#include "needle/model/eval_scope.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/fake_quant_scope.h"
#include "needle/train/loss.h"

namespace needle {
namespace {

// Unweighted cross-entropy summed over the batch's non-pad targets: [] on the device.
torch::Tensor summed_cross_entropy(NeedleImpl& model, const DeviceBatch& batch,
                                   std::int64_t block_rows) {
  const auto hidden = model.hidden(batch.input);
  auto& embedding = *model.embedding;
  return tied_token_loss(hidden, embedding.weight_path(embedding.weight, torch::kFloat32),
                         batch.target, {},
                         {.z_loss = 0.0,
                          .pad_token_id = model.config().pad_token_id,
                          .tokens = 1,
                          .block_rows = block_rows})
      .cross_entropy;
}

}  // namespace

PerplexityReport measure_perplexity(Needle model, const torch::Device& device,
                                    const BatchSource& next_batch, std::span<const FakeQuant> modes,
                                    Ranks* ranks) {
  NEEDLE_CHECK(!modes.empty(), "perplexity under no mode at all");
  const EvalScope evaluation(*model);
  PerplexityReport report;
  std::vector<torch::Tensor> sums;  // one a batch and mode; read together at the end
  for (Batch batch; next_batch(batch);) {
    report.tokens += batch.target_tokens();
    const DeviceBatch on_device =
        to_device(batch, device, model->config().vocab_size, /*class_weights=*/nullptr);
    for (const FakeQuant mode : modes) {
      const FakeQuantScope quantized(*model, mode, FakeQuant::kNone);
      sums.push_back(summed_cross_entropy(*model, on_device, loss_block_rows(device)));
    }
  }
  auto totals = torch::zeros({static_cast<std::int64_t>(modes.size())}, torch::kFloat64);
  if (!sums.empty()) {
    totals = torch::stack(sums).cpu().to(torch::kFloat64).view({-1, totals.size(0)}).sum(0);
  }
  if (ranks != nullptr) {
    auto all =
        torch::cat({totals, torch::full({1}, static_cast<double>(report.tokens), torch::kFloat64)});
    ranks->sum(all);
    totals = all.narrow(0, 0, totals.size(0));
    report.tokens = std::llround(all[-1].item<double>());
  }
  if (report.tokens == 0) {
    throw DataError(
        "perplexity of a data set without a single target token; leave out the "
        "validation or give it rows");
  }
  for (std::int64_t i = 0; i < totals.size(0); ++i) {
    const double mean = totals[i].item<double>() / static_cast<double>(report.tokens);
    report.perplexity.push_back(std::exp(std::min(mean, 20.0)));
  }
  return report;
}

PerplexityReport measure_perplexity(Needle model, const torch::Device& device,
                                    std::span<const Batch> batches,
                                    std::span<const FakeQuant> modes) {
  std::size_t next = 0;
  const auto source = [&](Batch& batch) {
    if (next == batches.size()) {
      return false;
    }
    batch = batches[next++];
    return true;
  };
  return measure_perplexity(std::move(model), device, BatchSource(source), modes);
}

}  // namespace needle
