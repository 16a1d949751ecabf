// The model that a command evaluates: a `.needle` file in the runtime, or a checkpoint in LibTorch.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "needle/decode/engine.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct EvalModelOptions {
  std::string path;             // .needle file, checkpoint folder, run folder or needle.pkl
  std::string tokenizer;        // for a needle.pkl without one beside it
  std::string device = "auto";  // checkpoints only
  std::vector<std::string> device_plugins;  // likewise
  std::string kernels = "none";  // checkpoints only: quantise the kernels as an export would
  std::string embedding = "none";
  std::string numerics = "mixed";  // of the runtime: mixed as served, int8, int16 or float
  bool libtorch = false;    // compute a .needle file's weights with LibTorch instead of the runtime
  std::size_t threads = 1;  // requests at a time
};

struct EvalModel {
  std::string name;                   // for tables: the last part of the path
  std::shared_ptr<const void> owner;  // keeps the rest alive
  const Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  PromptConfig prompt;
};

EvalModel open_model(const EvalModelOptions& options);

// The part that needs LibTorch. Throws ConfigError in a program that was built without.
EvalModel open_checkpoint(const EvalModelOptions& options);

}  // namespace needle
