// A trained model with its tokenizer and prompt settings, written as a `.needle` weights file that
// is proved to compute the same before it takes its place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "needle/core/fields.h"
#include "needle/core/json.h"
#include "needle/export/verify.h"
#include "needle/model/needle.h"
#include "needle/quant/pack.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct ExportSettings {
  WeightEncoding kernels = WeightEncoding::kInt4;
  WeightEncoding embedding = WeightEncoding::kInt4;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("kernels", self.kernels, "Dense kernels: int4, int8 or f32");
    visit("embedding", self.embedding, "Tied embedding: int4, int8 or f32");
  }
};

// Writes the file, atomically. Norms, gates and biases stay float32. `provenance` is saved as it
// is: where the weights come from. Throws ConfigError if tokenizer and model have different sizes,
// Error if a weight is not finite, FileError if the system refuses.
void export_weights(const Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt,
                    const Json& provenance, const ExportSettings& settings,
                    const std::filesystem::path& path);

// The same under a temporary name beside `path`; then verify_weights on what was written; then the
// file takes its name. If the check fails, nothing is left of it and what stood at `path` stays.
VerifyReport export_verified(const Needle& model, const Tokenizer& tokenizer,
                             const PromptConfig& prompt, const Json& provenance,
                             const ExportSettings& settings, const VerifyOptions& verify,
                             const std::filesystem::path& path);

}  // namespace needle
