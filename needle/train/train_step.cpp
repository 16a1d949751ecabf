#include "needle/train/train_step.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/model/checkpoint.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/fake_quant_scope.h"

namespace needle {
namespace {

void check(bool good, std::string_view field, double value, std::string_view rule) {
  if (!good) {
    throw ConfigError(format("step.{} = {}: give {}", field, value, rule));
  }
}

std::int64_t count_tokens(std::span<const TokenId> ids) {
  return std::count_if(ids.begin(), ids.end(), [](TokenId id) { return id != kPadId; });
}

bool is_due(std::int64_t every, std::int64_t step) {
  return every > 0 && step > 0 && step % every == 0;
}

// Which gradient is to blame; only asked once something is wrong.
std::string first_bad_gradient(const Needle& model) {
  for (const auto& [name, parameter] : named_parameters(model)) {
    if (parameter.grad().defined() && !parameter.grad().isfinite().all().item<bool>()) {
      return name;
    }
  }
  return "only their sum";
}

// printf has "-nan" for some of them.
std::string_view name_of_bad(double value) { return std::isnan(value) ? "nan" : "infinite"; }

}  // namespace

TrainStep::TrainStep(Needle model, Optimizer& optimizer, const TrainStepConfig& config,
                     torch::Device device, std::uint64_t seed, std::uint64_t rank)
    : model_(std::move(model)),
      optimizer_(optimizer),
      config_(config),
      device_(device),
      seed_(seed),
      rank_(rank) {
  const auto& [weights, z_loss, contrastive_weight] = config.loss;
  constexpr std::string_view kNotNegative = "0 or more";
  check(weights.structure >= 0.0, "loss.class_weights.structure", weights.structure, kNotNegative);
  check(weights.name >= 0.0, "loss.class_weights.name", weights.name, kNotNegative);
  check(weights.value >= 0.0, "loss.class_weights.value", weights.value, kNotNegative);
  check(weights.key >= 0.0, "loss.class_weights.key", weights.key, kNotNegative);
  check(z_loss >= 0.0, "loss.z_loss", z_loss, kNotNegative);
  check(contrastive_weight >= 0.0, "loss.contrastive_weight", contrastive_weight, kNotNegative);
  check(config.quant.every >= 0, "quant.every", static_cast<double>(config.quant.every),
        "0 (never) or more");
  check(config.contrastive_every >= 0, "contrastive_every",
        static_cast<double>(config.contrastive_every), "0 (never) or more");
}

bool TrainStep::is_contrastive_step(std::int64_t step) const {
  return is_due(config_.contrastive_every, step);
}

bool TrainStep::is_quantized_step(std::int64_t step) const {
  return config_.quant.every == 1 || is_due(config_.quant.every, step);
}

StepReport TrainStep::run(std::int64_t step, std::span<const Batch> micro_batches,
                          const ContrastiveBatch* contrastive) {
  NEEDLE_CHECK(!micro_batches.empty(), "step {} without a batch", step);
  StepReport report;
  report.step = step;
  report.lr_adam = optimizer_.lr_adam();
  report.lr_muon = optimizer_.lr_muon();
  report.quantized = is_quantized_step(step);
  TokenLossOptions options{.z_loss = config_.loss.z_loss,
                           .pad_token_id = model_->config().pad_token_id,
                           .block_rows = loss_block_rows(device_)};
  for (const Batch& batch : micro_batches) {
    report.source_tokens += count_tokens(batch.source);
    report.target_tokens += batch.target_tokens();
    options.positions += batch.rows * batch.dec_len;
  }
  options.tokens = std::max<std::int64_t>(report.target_tokens, 1);

  seed_generators(derive_seed(seed_, "dropout", static_cast<std::uint64_t>(step), rank_));
  model_->train();
  const auto& quant = config_.quant;
  const FakeQuantScope quantized(*model_, report.quantized ? quant.kernels : FakeQuant::kNone,
                                 report.quantized ? quant.embedding : FakeQuant::kNone);
  optimizer_.zero_grad();
  auto sums = torch::zeros({4}, torch::TensorOptions().device(device_));  // as in finish()
  for (const Batch& batch : micro_batches) {
    const LossParts parts = text_loss(batch, options);
    parts.text_loss.backward();
    sums.narrow(0, 0, 3) += torch::stack({parts.text_loss.detach(), parts.cross_entropy, parts.z});
  }
  if (contrastive != nullptr && is_contrastive_step(step)) {
    const auto loss = pair_loss(*contrastive);
    (config_.loss.contrastive_weight * loss).backward();
    sums[3] += loss.detach();
    report.contrastive = 0.0;
  }
  finish(sums, report);
  return report;
}

LossParts TrainStep::text_loss(const Batch& host, const TokenLossOptions& options) {
  const DeviceBatch batch = to_device(host, device_, model_->config().vocab_size,
                                      config_.weighted ? &config_.loss.class_weights : nullptr);
  const auto hidden = model_->hidden(batch.input);  // [B, L, d]
  auto& embedding = *model_->embedding;
  return tied_token_loss(hidden, embedding.weight_path(embedding.weight, torch::kFloat32),
                         batch.target, batch.weights, options);
}

torch::Tensor TrainStep::pair_loss(const ContrastiveBatch& host) {
  const DeviceContrastiveBatch batch = to_device(host, device_, model_->config().vocab_size);
  return contrastive_loss(model_->embed(batch.queries), model_->embed(batch.tools),
                          model_->log_temp);
}

void TrainStep::finish(const torch::Tensor& sums, StepReport& report) {
  // The only wait for the device: every number that the host decides on or reports, at once.
  const auto numbers = torch::cat({sums, optimizer_.grad_norm().to(device_).view({1})}).cpu();
  const auto* number = numbers.const_data_ptr<float>();
  report.loss = number[0];
  report.cross_entropy = number[1];
  report.z = number[2];
  if (report.contrastive) {
    report.contrastive = number[3];
  }
  report.grad_norm = number[4];
  if (!std::isfinite(report.loss)) {
    report.skip_reason = format("the loss is {}", name_of_bad(report.loss));
  } else if (!std::isfinite(report.contrastive.value_or(0.0))) {
    report.skip_reason = format("the contrastive loss is {}", name_of_bad(*report.contrastive));
  } else if (!std::isfinite(report.grad_norm)) {
    report.skip_reason = format("the gradient norm is {} (first in {})",
                                name_of_bad(report.grad_norm), first_bad_gradient(model_));
  }
  report.skipped = !report.skip_reason.empty();
  if (report.skipped) {
    optimizer_.zero_grad();
  } else {
    optimizer_.step(report.grad_norm);
  }
}

}  // namespace needle
