// Models to files of needle-rs and back (quant/needle_rs_file.h).
#pragma once

#include <filesystem>

#include "needle/model/needle.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

// Writes needle.safetensors and vocab.txt into `folder`, which exists. Kernels become INT4, the
// embedding bfloat16. Throws ConfigError if the tokenizer is not the model's.
void export_needle_rs(const Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt,
                      const std::filesystem::path& folder);

struct ImportedModel {
  Needle model{nullptr};  // float32 parameters that hold the quantised values
  Tokenizer tokenizer;
  PromptConfig prompt;
  bool has_contrastive_head = false;
};
// Throws FileError or FormatError.
ImportedModel import_needle_rs(const std::filesystem::path& weights,
                               const std::filesystem::path& vocabulary);

}  // namespace needle
