// Proof of an export: the file is read back, and the runtime must compute what the LibTorch model
// computes with the very weights that the file deploys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "needle/core/fields.h"
#include "needle/decode/engine.h"
#include "needle/model/needle.h"

namespace needle {

struct VerifyOptions {
  std::vector<std::vector<TokenId>> prompts;  // empty: random_prompts()
  std::int64_t max_tokens = 32;               // greedy tokens a prompt
  // Largest difference of a logit allowed, relative to the largest magnitude of its step (at least
  // 1). Both sides compute in float32 in different orders: measured 1e-6 to 1e-5.
  double tolerance = 2e-4;
  std::size_t threads = 1;
};

struct VerifyReport {
  std::int64_t prompts = 0;
  std::int64_t tokens = 0;            // steps compared
  double logit_difference = 0;        // largest, relative as in `tolerance`
  double embedding_difference = 0;    // largest of the retrieval embeddings' values
  std::int64_t different_tokens = 0;  // the runtime chose another token
  std::int64_t ties = 0;              // so did it, but the two logits lay within the tolerance
  double tolerance = 0;
  std::int64_t file_bytes = 0;
  // What quantisation itself costs, LibTorch against LibTorch: informative, no failure.
  double quantization_difference = 0;     // mean over steps of the relative difference
  double same_tokens_as_unquantized = 0;  // share of steps with the same best token

  bool passed() const {
    return logit_difference <= tolerance && embedding_difference <= tolerance &&
           different_tokens == 0;
  }
  std::string text() const;  // a few lines for people

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("prompts", self.prompts, "Prompts compared");
    visit("tokens", self.tokens, "Decoder steps compared");
    visit("logit_difference", self.logit_difference, "Largest relative difference of a logit");
    visit("embedding_difference", self.embedding_difference, "Largest of the embeddings");
    visit("different_tokens", self.different_tokens, "Steps where the runtime chose another token");
    visit("ties", self.ties, "Steps where it did within the tolerance");
    visit("tolerance", self.tolerance, "Largest difference allowed");
    visit("file_bytes", self.file_bytes, "Size of the weights file");
    visit("quantization_difference", self.quantization_difference,
          "Mean relative difference of logits that quantisation makes");
    visit("same_tokens_as_unquantized", self.same_tokens_as_unquantized,
          "Share of steps with the same best token without quantisation");
  }
};

// Prompts of random tokens, short and long, one with padding inside. Deterministic.
std::vector<std::vector<TokenId>> random_prompts(const ModelConfig& config);

// A LibTorch model of the weights that the file deploys. Throws FormatError.
Needle deployed_model(const std::filesystem::path& weights_file);

// Feeds both engines the LibTorch model's greedy tokens and compares every step's logits and best
// token. `model` is the unquantised one that was exported.
VerifyReport verify_weights(const Needle& model, const std::filesystem::path& weights_file,
                            const VerifyOptions& options = {});

// Throws Error naming `where`, the difference and the tolerance unless the report passed.
void check_verified(const VerifyReport& report, const std::string& where);

}  // namespace needle
