// What training minimises: weighted cross-entropy, z-loss and the contrastive loss of tool
// retrieval. Specification, section 5.
#pragma once

#include <cstdint>

#include <torch/torch.h>

namespace needle {

// Loss weight of each token class, in the order of TokenClass (data/example.h).
struct ClassWeights {
  double structure = 1.0;
  double name = 2.0;
  double value = 4.0;
  double key = 1.5;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("structure", self.structure, "Weight of brackets, quotes and everything else");
    visit("name", self.name, "Weight of a tool's name");
    visit("value", self.value, "Weight of an argument's value");
    visit("key", self.key, "Weight of an argument's key");
  }
};

struct LossConfig {
  ClassWeights class_weights;
  double z_loss = 1e-4;
  double contrastive_weight = 0.1;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("class_weights", self.class_weights, "Loss weights of the token classes (finetuning)");
    visit("z_loss", self.z_loss, "Weight of the mean squared log-partition; 0 turns it off");
    visit("contrastive_weight", self.contrastive_weight, "Weight of the retrieval loss");
  }
};

// Scalars on the device of the logits. Summing the parts of micro-batches that were given the
// divisors of the whole batch gives the parts of the whole batch.
struct LossParts {
  torch::Tensor cross_entropy;  // [], weighted
  torch::Tensor z;              // [], z-loss times its weight
  torch::Tensor text_loss;  // [], cross_entropy + z: the reported loss, and what to differentiate
};

struct TokenLossOptions {
  double z_loss = 1e-4;
  std::int64_t pad_token_id = 0;
  // What the sums are divided by. 0: counted from `target` (at least 1), on its device and without
  // waiting for it. With gradient accumulation: the counts of all micro-batches together.
  std::int64_t tokens = 0;     // non-pad targets: divides the cross-entropy
  std::int64_t positions = 0;  // B * L, padding included: divides the z-loss
  // tied_token_loss: rows whose logits are made at once. 256 keep them in the cache of a CPU core;
  // a GPU wants more (device.h: loss_block_rows).
  std::int64_t block_rows = 256;
  // tied_token_loss on the CPU: of the products (model/product.h).
  torch::ScalarType factors = torch::kFloat32;
};

// logits: float32 [B, L, V] or [N, V]; target: int64 [B, L] or [N]; weights: float32, as target, or
// undefined: all 1.
//   cross_entropy = sum over non-pad targets of weight * -log softmax(logits)[target] / tokens
//   z             = z_loss * sum over all positions of logsumexp(logits)^2 / positions
// Divided by the count of non-pad targets, not by the sum of weights, so a batch rich in argument
// values weighs more. Padding reaches the loss, and its gradient, through z. Every part is
// differentiable.
LossParts token_loss(const torch::Tensor& logits, const torch::Tensor& target,
                     const torch::Tensor& weights, const TokenLossOptions& options);

// The same for logits = float32(hidden) x embedding^T that never exist as a whole: works through
// blocks of rows and makes the gradient of a block while its logits are in the cache. Equals
// token_loss up to rounding. hidden: [B, L, d] or [N, d]; embedding: float32 [V, d]. Only text_loss
// is differentiable.
LossParts tied_token_loss(const torch::Tensor& hidden, const torch::Tensor& embedding,
                          const torch::Tensor& target, const torch::Tensor& weights,
                          const TokenLossOptions& options);

// queries, tools: unit vectors [B, contrastive_dim], row i of one belongs to row i of the other;
// log_temp: []. temperature = exp(clip(log_temp, -ln 100, ln 100)); the mean of the cross-entropies
// of rows and of columns of queries tools^T / temperature against the diagonal. Not multiplied by
// its weight. Throws Error on other shapes.
torch::Tensor contrastive_loss(const torch::Tensor& queries, const torch::Tensor& tools,
                               const torch::Tensor& log_temp);

}  // namespace needle
