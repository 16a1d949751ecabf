#include "needle/train/loss.h"

#include <algorithm>
#include <cmath>

#include <ATen/Parallel.h>

#include "needle/core/error.h"
#include "needle/model/kernels/kernels.h"
#include "needle/model/product.h"

namespace needle {
namespace {

// The two losses as sums over rows: weight of each row in the cross-entropy (0 at padding, divisor
// included) and of the squared log-partition.
struct RowWeights {
  torch::Tensor cross_entropy;  // float32 [N]
  double z = 0.0;
};

RowWeights row_weights(const torch::Tensor& target, const torch::Tensor& weights,
                       const TokenLossOptions& options) {
  const auto is_text = target.ne(options.pad_token_id);
  auto scaled = weights.defined() ? weights.reshape(-1) * is_text : is_text.to(torch::kFloat32);
  scaled = options.tokens > 0 ? scaled / static_cast<double>(options.tokens)
                              : scaled / is_text.sum().clamp_min(1);
  const auto positions = options.positions > 0 ? options.positions : target.size(0);
  return {.cross_entropy = scaled,
          .z = options.z_loss / static_cast<double>(std::max<std::int64_t>(positions, 1))};
}

void check_rows(const torch::Tensor& rows, const torch::Tensor& target,
                const torch::Tensor& weights) {
  NEEDLE_CHECK(
      rows.dim() >= 2 && rows.numel() / std::max<std::int64_t>(rows.size(-1), 1) == target.numel(),
      "{} targets for {} values of width {}", target.numel(), rows.numel(), rows.size(-1));
  NEEDLE_CHECK(!weights.defined() || weights.numel() == target.numel(), "{} weights for {} targets",
               weights.numel(), target.numel());
}

// A block's sums on the CPU: logits [rows, V] become their gradient, in one pass over each row.
struct BlockLoss {
  torch::Tensor cross_entropy, z;  // []
};
BlockLoss host_block_loss(torch::Tensor& logits, const torch::Tensor& target,
                          const torch::Tensor& weight, double z_weight) {
  const auto losses = torch::empty({logits.size(0), 2}, logits.options());
  const LossRows task{.width = logits.size(1),
                      .target = target.const_data_ptr<std::int64_t>(),
                      .weight = weight.const_data_ptr<float>(),
                      .z_weight = static_cast<float>(z_weight)};
  auto* values = logits.data_ptr<float>();
  auto* sums = losses.data_ptr<float>();
  at::parallel_for(0, logits.size(0), 8, [&](std::int64_t first, std::int64_t last) {
    row_kernels().loss_rows(task, first, last, values, sums);
  });
  const auto total = losses.sum(0);
  return {.cross_entropy = total[0], .z = total[1]};
}

// The gradient is made in the forward pass, block by block, and only scaled in the backward pass:
// logits and their gradient [N, V] would otherwise be the largest tensors of a step by far.
class TiedTokenLoss : public torch::autograd::Function<TiedTokenLoss> {
 public:
  // Returns text_loss, cross_entropy, z.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const torch::Tensor& hidden,     // [N, d]
                                                const torch::Tensor& embedding,  // [V, d]
                                                const torch::Tensor& target,     // [N]
                                                const torch::Tensor& row_weight, double z_weight,
                                                std::int64_t block_rows, torch::ScalarType factors,
                                                bool with_gradient) {
    const auto n = hidden.size(0);
    auto cross_entropy = torch::zeros({}, embedding.options());
    auto z = torch::zeros({}, embedding.options());
    torch::Tensor hidden_grad, embedding_grad;
    if (with_gradient) {
      hidden_grad = torch::empty({n, hidden.size(1)}, embedding.options());
      embedding_grad = torch::zeros_like(embedding);
    }
    const bool on_host = embedding.device().is_cpu();
    const auto embedding_factor = on_host ? as_passing_factor(embedding, factors) : embedding;
    for (std::int64_t start = 0; start < n; start += block_rows) {
      const auto rows = std::min(block_rows, n - start);
      const auto x = hidden.narrow(0, start, rows).to(torch::kFloat32);  // [rows, d]
      const auto ids = target.narrow(0, start, rows).unsqueeze(1);       // [rows, 1]
      const auto weight = row_weight.narrow(0, start, rows).unsqueeze(1);
      if (on_host) {
        const auto x_factor = as_passing_factor(x, factors);
        auto logits = product(x_factor, embedding_factor.t(), factors);  // [rows, V]
        const BlockLoss loss = host_block_loss(logits, target.narrow(0, start, rows),
                                               row_weight.narrow(0, start, rows), z_weight);
        cross_entropy += loss.cross_entropy;
        z += loss.z;
        if (with_gradient) {
          const auto logits_grad = as_passing_factor(logits, factors);
          product_into(hidden_grad.narrow(0, start, rows), logits_grad, embedding_factor, factors,
                       1.0, 0.0);
          product_into(embedding_grad, logits_grad.t(), x_factor, factors, 1.0, 1.0);
        }
        continue;
      }
      const auto logits = x.matmul(embedding.t());  // [rows, V]
      auto log_p = torch::log_softmax(logits, 1);
      const auto log_p_target = log_p.gather(1, ids);
      const auto log_partition = logits.gather(1, ids) - log_p_target;  // [rows, 1]
      cross_entropy -= (weight * log_p_target).sum();
      z += z_weight * log_partition.square().sum();
      if (with_gradient) {
        // d/dlogits = p * (weight + 2 z log_partition) - weight * onehot(target)
        auto logits_grad = log_p.exp_().mul_(weight + 2.0 * z_weight * log_partition);
        logits_grad.scatter_add_(1, ids, -weight);
        auto x_grad = hidden_grad.narrow(0, start, rows);
        torch::mm_out(x_grad, logits_grad, embedding);
        embedding_grad.addmm_(logits_grad.t(), x);
      }
    }
    if (with_gradient) {
      context->save_for_backward({hidden_grad.to(hidden.scalar_type()), embedding_grad});
    }
    context->mark_non_differentiable({cross_entropy, z});
    return {cross_entropy + z, cross_entropy, z};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list outer) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor none;
    return {saved[0] * outer[0].to(saved[0].scalar_type()),
            saved[1] * outer[0],
            none,
            none,
            none,
            none,
            none,
            none};
  }
};

}  // namespace

LossParts token_loss(const torch::Tensor& logits, const torch::Tensor& target,
                     const torch::Tensor& weights, const TokenLossOptions& options) {
  check_rows(logits, target, weights);
  const auto rows = logits.reshape({-1, logits.size(-1)});  // [N, V]
  const auto ids = target.reshape(-1);                      // [N]
  const RowWeights weight = row_weights(ids, weights, options);
  const auto log_partition = torch::logsumexp(rows, 1);
  const auto log_p_target = rows.gather(1, ids.unsqueeze(1)).squeeze(1) - log_partition;
  LossParts parts;
  parts.cross_entropy = -(weight.cross_entropy * log_p_target).sum();
  parts.z = weight.z * log_partition.square().sum();
  parts.text_loss = parts.cross_entropy + parts.z;
  return parts;
}

LossParts tied_token_loss(const torch::Tensor& hidden, const torch::Tensor& embedding,
                          const torch::Tensor& target, const torch::Tensor& weights,
                          const TokenLossOptions& options) {
  check_rows(hidden, target, weights);
  NEEDLE_CHECK(embedding.dim() == 2 && embedding.size(1) == hidden.size(-1),
               "hidden states of width {} against an embedding of {} values in {} rows",
               hidden.size(-1), embedding.numel(), embedding.size(0));
  NEEDLE_CHECK(options.block_rows >= 1, "block_rows is {}", options.block_rows);
  const auto ids = target.reshape(-1);
  const RowWeights weight = row_weights(ids, weights, options);
  const bool with_gradient =
      torch::GradMode::is_enabled() && (hidden.requires_grad() || embedding.requires_grad());
  const auto parts =
      TiedTokenLoss::apply(hidden.reshape({-1, hidden.size(-1)}), embedding, ids.contiguous(),
                           weight.cross_entropy.contiguous(), weight.z, options.block_rows,
                           options.factors, with_gradient);
  return {.cross_entropy = parts[1], .z = parts[2], .text_loss = parts[0]};
}

torch::Tensor contrastive_loss(const torch::Tensor& queries, const torch::Tensor& tools,
                               const torch::Tensor& log_temp) {
  NEEDLE_CHECK(queries.dim() == 2 && queries.sizes() == tools.sizes() && queries.size(0) > 0,
               "queries and tools must be embeddings [B, width], B at least 1, of one shape");
  const double limit = std::log(100.0);
  const auto temperature = log_temp.clamp(-limit, limit).exp();
  const auto logits = queries.matmul(tools.t()) / temperature;  // [B, B]
  const auto by_row = torch::log_softmax(logits, 1).diagonal().mean();
  const auto by_column = torch::log_softmax(logits, 0).diagonal().mean();
  return -0.5 * (by_row + by_column);
}

}  // namespace needle
