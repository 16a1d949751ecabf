// A model with what belongs to it (tokenizer, how prompts are written), from any place that has
// one:
//
//   a checkpoint folder  model.safetensors, model.json, tokenizer.model
//   a run folder         its best checkpoint, else its newest valid one
//   a needle.pkl         its tokenizer beside it (needle.model, tokenizer/needle.model) or apart
#pragma once

#include <filesystem>

#include "needle/model/needle.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct SavedModel {
  Needle model{nullptr};  // float32 parameters, on the CPU, in evaluation mode
  Tokenizer tokenizer;
  PromptConfig prompt;
  std::filesystem::path source;  // what was read: a checkpoint folder or a .pkl
};

// `tokenizer`: empty, or the file to use for a needle.pkl. Throws FileError if there is no model,
// FormatError if a file is damaged or parameters have other shapes than the config says,
// ConfigError if the tokenizer is not the model's.
SavedModel load_saved_model(const std::filesystem::path& path,
                            const std::filesystem::path& tokenizer = {});

// Writes model.safetensors, model.json and tokenizer.model into `folder`, which exists: what
// load_saved_model reads.
void write_saved_model(const std::filesystem::path& folder, const Needle& model,
                       const Tokenizer& tokenizer, const PromptConfig& prompt);

}  // namespace needle
