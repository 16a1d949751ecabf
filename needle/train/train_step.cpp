#include "needle/train/train_step.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <ATen/record_function.h>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/model/checkpoint.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/fake_quant_scope.h"
#include "needle/train/flops.h"

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
                     torch::Device device, std::uint64_t seed, std::uint64_t rank,
                     DataParallel* replicas)
    : model_(std::move(model)),
      optimizer_(optimizer),
      config_(config),
      device_(device),
      seed_(seed),
      rank_(rank),
      replicas_(replicas) {
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

bool is_contrastive_step(std::int64_t every, std::int64_t step) { return is_due(every, step); }

bool TrainStep::is_contrastive_step(std::int64_t step) const {
  return needle::is_contrastive_step(config_.contrastive_every, step);
}

bool TrainStep::is_quantized_step(std::int64_t step) const {
  return config_.quant.every == 1 || is_due(config_.quant.every, step);
}

StepReport TrainStep::run(std::int64_t step, std::span<const Batch> micro_batches,
                          const ContrastiveBatch* contrastive, const StepCounts* counts) {
  NEEDLE_CHECK(replicas_ != nullptr ? counts != nullptr : !micro_batches.empty(),
               "step {} without a batch", step);
  NEEDLE_CHECK(ahead_.empty(), "step {} was asked for while another is not finished", step);
  StepReport report = begin(step, micro_batches, contrastive);
  finish(accumulate(micro_batches, contrastive, counts, report), report);
  return report;
}

// Everything about the step that the host knows.
StepReport TrainStep::begin(std::int64_t step, std::span<const Batch> micro_batches,
                            const ContrastiveBatch* contrastive) const {
  StepReport report;
  report.step = step;
  report.lr_adam = optimizer_.lr_adam();
  report.lr_muon = optimizer_.lr_muon();
  report.quantized = is_quantized_step(step);
  report.flops = muon_flops(model_->config(), optimizer_.config().muon.newton_schulz_steps);
  for (const Batch& batch : micro_batches) {
    report.flops += model_flops(model_->config(), work_of(batch));
    report.source_tokens += count_tokens(batch.source);
    report.target_tokens += batch.target_tokens();
  }
  if (contrastive != nullptr && is_contrastive_step(step)) {
    report.contrastive = 0.0;
  }
  return report;
}

// Without the divisors.
TokenLossOptions TrainStep::loss_options() const {
  const auto factors = model_->factor_dtype();
  return {.z_loss = config_.loss.z_loss,
          .pad_token_id = model_->config().pad_token_id,
          .block_rows = loss_block_rows(device_, factors),
          .factors = factors};
}

// Gradients of the whole step; returns the sums that finish() reads.
torch::Tensor TrainStep::accumulate(std::span<const Batch> micro_batches,
                                    const ContrastiveBatch* contrastive, const StepCounts* counts,
                                    const StepReport& report) {
  TokenLossOptions options = loss_options();
  for (const Batch& batch : micro_batches) {
    options.positions += batch.rows * batch.dec_len;
  }
  options.tokens = std::max<std::int64_t>(report.target_tokens, 1);
  if (counts != nullptr) {
    options.tokens = std::max<std::int64_t>(counts->target_tokens, 1);
    options.positions = counts->positions;
  }
  const bool with_pairs = report.contrastive.has_value();
  const std::int64_t world = replicas_ != nullptr ? replicas_->ranks().world() : 1;

  seed_generators(derive_seed(seed_, "dropout", static_cast<std::uint64_t>(report.step), rank_));
  model_->train();
  const auto& quant = config_.quant;
  const FakeQuantScope quantized(*model_, report.quantized ? quant.kernels : FakeQuant::kNone,
                                 report.quantized ? quant.embedding : FakeQuant::kNone);
  replicas_ != nullptr ? replicas_->begin_step() : optimizer_.zero_grad();
  auto sums = torch::zeros({4}, torch::TensorOptions().device(device_));  // as in finish()
  for (const Batch& batch : micro_batches) {
    const LossParts parts =
        text_loss(to_device(batch, device_, model_->config().vocab_size,
                            config_.weighted ? &config_.loss.class_weights : nullptr),
                  options);
    if (replicas_ != nullptr && &batch == &micro_batches.back() && !with_pairs) {
      replicas_->last_backward_follows();
    }
    {
      RECORD_USER_SCOPE("step: backward");
      parts.text_loss.backward();
    }
    sums.narrow(0, 0, 3) += torch::stack({parts.text_loss.detach(), parts.cross_entropy, parts.z});
  }
  if (with_pairs) {
    const auto loss = pair_loss(*contrastive) / static_cast<double>(world);
    if (replicas_ != nullptr) {
      replicas_->last_backward_follows();
    }
    (config_.loss.contrastive_weight * loss).backward();
    sums[3] += loss.detach();
  }
  return sums;
}

LossParts TrainStep::text_loss(const DeviceBatch& batch, const TokenLossOptions& options) {
  torch::Tensor hidden;  // [B, L, d]
  {
    RECORD_USER_SCOPE("step: forward");
    hidden = model_->hidden(batch.input);
  }
  RECORD_USER_SCOPE("step: loss and its gradient");
  auto& embedding = *model_->embedding;
  return tied_token_loss(hidden, embedding.weight_path(embedding.weight, torch::kFloat32),
                         batch.target, batch.weights, options);
}

torch::Tensor TrainStep::pair_loss(const ContrastiveBatch& host) {
  const DeviceContrastiveBatch batch = to_device(host, device_, model_->config().vocab_size);
  return contrastive_loss(model_->embed(batch.queries), model_->embed(batch.tools),
                          model_->log_temp);
}

// Every number that the host decides on or reports, at once: the only wait for the device.
StepTotals TrainStep::totals(const torch::Tensor& sums, const StepReport& report) {
  if (replicas_ != nullptr) {
    const auto tokens = torch::tensor(
        {static_cast<float>(report.source_tokens), static_cast<float>(report.target_tokens)});
    return replicas_->finish_backward(torch::cat({sums, tokens.to(device_)}));
  }
  const auto numbers = torch::cat({sums, optimizer_.grad_norm().to(device_).view({1})}).cpu();
  const auto* number = numbers.const_data_ptr<float>();
  return {.sums = {number[0], number[1], number[2], number[3],
                   static_cast<double>(report.source_tokens),
                   static_cast<double>(report.target_tokens)},
          .grad_norm = number[4],
          .bad_ranks = {}};
}

// What became of the step.
void TrainStep::judge(const StepTotals& total, StepReport& report) {
  report.loss = total.sums[0];
  report.cross_entropy = total.sums[1];
  report.z = total.sums[2];
  if (report.contrastive) {
    report.contrastive = total.sums[3];
  }
  report.source_tokens = std::llround(total.sums[4]);
  report.target_tokens = std::llround(total.sums[5]);
  report.grad_norm = total.grad_norm;
  report.stop = total.stop;
  if (!std::isfinite(report.loss)) {
    report.skip_reason = format("the loss is {}", name_of_bad(report.loss));
  } else if (!std::isfinite(report.contrastive.value_or(0.0))) {
    report.skip_reason = format("the contrastive loss is {}", name_of_bad(*report.contrastive));
  } else if (!std::isfinite(report.grad_norm)) {
    report.skip_reason = format("the gradient norm is {}", name_of_bad(report.grad_norm));
  }
  report.skipped = !report.skip_reason.empty();
}

void TrainStep::finish(const torch::Tensor& sums, StepReport& report) {
  const StepTotals total = totals(sums, report);
  judge(total, report);
  if (report.skipped && std::isfinite(report.loss) &&
      std::isfinite(report.contrastive.value_or(0.0))) {
    report.skip_reason +=
        format(" (first in {})",
               replicas_ != nullptr ? replicas_->first_bad_gradient() : first_bad_gradient(model_));
  }
  for (std::size_t i = 0; report.skipped && i < total.bad_ranks.size(); ++i) {
    report.skip_reason += format("{}{}", i == 0 ? ", on rank " : ", ", total.bad_ranks[i]);
  }
  if (report.skipped) {
    replicas_ != nullptr ? replicas_->begin_step() : optimizer_.zero_grad();
    return;
  }
  {
    RECORD_USER_SCOPE("step: optimiser");
    optimizer_.step(report.grad_norm);
  }
  if (replicas_ != nullptr) {
    replicas_->share_parameters();
  }
}

void TrainStep::run_ahead(std::int64_t step, std::span<const Batch> micro_batches,
                          const ContrastiveBatch* contrastive) {
  NEEDLE_CHECK(can_run_ahead() && !micro_batches.empty(), "step {} cannot be run ahead", step);
  StepReport report = begin(step, micro_batches, contrastive);
  torch::Tensor numbers;
  std::vector<std::size_t> counted;
  if (record_steps_ && micro_batches.size() == 1 && !report.quantized && !report.contrastive) {
    numbers = run_recorded(micro_batches.front());
  } else {
    numbers = update_ahead(accumulate(micro_batches, contrastive, nullptr, report), counted);
    optimizer_.count_ahead(counted);
  }
  ahead_.push_back({.report = std::move(report), .numbers = PendingCopy(numbers)});
}

StepReport TrainStep::finish() {
  NEEDLE_CHECK(!ahead_.empty(), "no step was asked for");
  StepReport report = std::move(ahead_.front().report);
  const torch::Tensor numbers = ahead_.front().numbers.wait();
  ahead_.pop_front();
  const auto* number = numbers.const_data_ptr<float>();
  judge({.sums = {number[0], number[1], number[2], number[3],
                  static_cast<double>(report.source_tokens),
                  static_cast<double>(report.target_tokens)},
         .grad_norm = number[4],
         .bad_ranks = {}},
        report);
  const double scale = optimizer_.confirm(report.skipped);
  report.lr_adam = optimizer_.config().adam.peak_lr * scale;
  report.lr_muon = optimizer_.config().muon.peak_lr * scale;
  return report;
}

// The sums and the gradient norm, [5]; the update follows from them on the device.
torch::Tensor TrainStep::update_ahead(const torch::Tensor& sums,
                                      std::vector<std::size_t>& counted) {
  RECORD_USER_SCOPE("step: optimiser");
  const torch::NoGradGuard no_grad;
  const auto norm = optimizer_.grad_norm().to(device_);
  const auto numbers = torch::cat({sums, norm.view({1})});
  // The rule of judge(): what it is to skip changes nothing.
  const auto deciding = torch::stack({sums[0], sums[3], norm});
  counted = optimizer_.update_ahead(norm, deciding.isfinite().all());
  return numbers;
}

void TrainStep::record_steps() {
  if (!can_run_ahead() || !DeviceGraph::is_available(device_)) {
    throw ConfigError(format("train.record_steps: {} cannot record its work{}", device_.str(),
                             replicas_ != nullptr ? " in several processes" : ""));
  }
  if (model_->dropout_rate() > 0.0) {
    throw ConfigError("train.record_steps: dropout masks would repeat; set train.dropout=0");
  }
  record_steps_ = true;
}

torch::Tensor TrainStep::run_recorded(const Batch& host) {
  const PackedBatch packed = pack_batch(host, device_, model_->config().vocab_size,
                                        config_.weighted ? &config_.loss.class_weights : nullptr);
  const bool first = !recorded_.contains(packed.layout);
  Recorded& step = recorded_[packed.layout];
  if (first) {
    step.input = torch::empty_like(packed.values, torch::TensorOptions().device(device_));
    step.numbers = torch::empty({5}, torch::TensorOptions().device(device_));
  }
  step.input.copy_(packed.values, /*non_blocking=*/packed.values.is_pinned());
  const auto work = [&] {
    model_->train();
    optimizer_.zero_grad();
    TokenLossOptions options = loss_options();
    options.tokens = 0;  // counted on the device
    options.positions = host.rows * host.dec_len;
    const LossParts parts = text_loss(unpack_batch(step.input, packed.layout), options);
    parts.text_loss.backward();
    const auto sums = torch::stack(
        {parts.text_loss.detach(), parts.cross_entropy, parts.z, torch::zeros_like(parts.z)});
    step.numbers.copy_(update_ahead(sums, step.counted));
  };
  if (first) {
    work();
  } else {
    if (step.graph == nullptr) {
      step.graph = std::make_unique<DeviceGraph>(device_, work);
    }
    step.graph->replay();
    for (const torch::Tensor& parameter : model_->parameters()) {
      parameter.unsafeGetTensorImpl()->bump_version();  // what follows from it (WeightPath) is old
    }
  }
  optimizer_.count_ahead(step.counted);
  return step.numbers;
}

}  // namespace needle
