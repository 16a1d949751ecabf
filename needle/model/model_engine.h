// decode/engine over the LibTorch model: what is evaluated during training runs through the token
// loop that serves.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <torch/torch.h>

#include "needle/decode/engine.h"
#include "needle/decode/generate.h"
#include "needle/model/needle.h"

namespace needle {

// Encodes a prompt once, keeps the cross-attention keys and values and the decoder's own (KV
// cache), so a step costs one token; equal to the uncached forward pass within float rounding.
// While an engine lives, its model is in evaluation mode and must not be trained; the destructor
// restores the mode. `start` and `embed` are safe from several threads.
class ModelEngine final : public Engine {
 public:
  explicit ModelEngine(Needle model);
  ~ModelEngine() override;
  ModelEngine(const ModelEngine&) = delete;
  ModelEngine& operator=(const ModelEngine&) = delete;

  std::int64_t vocab_size() const override;
  std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                       std::int64_t max_tokens) const override;
  std::vector<float> embed(std::span<const TokenId> text) const override;

 private:
  Needle model_;
  bool was_training_;
};

struct BatchGenerateOptions {
  std::int64_t max_gen_len = 512;  // at most max_gen_len - 1 tokens a row, as generate_tokens
  std::int64_t batch_rows = 32;  // prompts decoded together; sorted by length, so padding is short
  std::vector<Constraint*> constraints;  // empty, or one a prompt (nullptr: free); not owned
};

// Greedy generation of many prompts at once, for evaluation during training: the token loop of
// decode/generate with one row a prompt. Prompts are padded and the padding masked; a row ends at
// its own eos and leaves the batch. The same tokens as one by one, except where rounding decides
// between two nearly equal logits. Results in the order of the prompts. Switches the model to
// evaluation mode for the call.
std::vector<GeneratedTokens> generate_batch(Needle& model,
                                            std::span<const std::vector<TokenId>> prompts,
                                            const BatchGenerateOptions& options = {});

// Contrastive embeddings of many texts, [contrastive_dim] each, `batch_rows` at a time.
std::vector<std::vector<float>> embed_batch(Needle& model,
                                            std::span<const std::vector<TokenId>> texts,
                                            std::int64_t batch_rows = 32);

}  // namespace needle
