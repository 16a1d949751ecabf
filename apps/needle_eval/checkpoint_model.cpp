#include <torch/torch.h>

#include "needle/core/error.h"
#include "needle/export/verify.h"
#include "needle/model/model_engine.h"
#include "needle/runtime/loaded_model.h"
#include "needle/train/device.h"
#include "needle/train/device_plugin.h"
#include "needle/train/saved_model.h"

#include "apps/needle_eval/eval_model.h"

namespace needle {
namespace {

FakeQuant parse_quant(std::string_view flag, const std::string& text) {
  const auto mode = kFakeQuantNames.parse(text);
  if (!mode) {
    throw ConfigError(format("{} {}: expected one of {}", flag, text, kFakeQuantNames.list()));
  }
  return *mode;
}

// The engine borrows the model: both live and die together.
struct Checkpoint {
  explicit Checkpoint(SavedModel loaded) : saved(std::move(loaded)), engine(saved.model) {}
  SavedModel saved;
  ModelEngine engine;
};

SavedModel load_model(const EvalModelOptions& options) {
  const std::filesystem::path path = options.path;
  if (path.extension() != ".needle") {
    return load_saved_model(options.path, options.tokenizer);
  }
  const auto loaded = runtime::LoadedModel::load(path);
  return {.model = deployed_model(path),
          .tokenizer = loaded.tokenizer(),
          .prompt = loaded.prompt_config()};
}

}  // namespace

EvalModel open_checkpoint(const EvalModelOptions& options) {
  const FakeQuant kernels = parse_quant("--kernels", options.kernels);
  const FakeQuant embedding = parse_quant("--embedding", options.embedding);
  load_device_plugins(options.device_plugins);
  const torch::Device device = choose_device(options.device);
  if (options.threads != 1) {
    torch::set_num_threads(1);  // the cores are busy with one request each
  }
  SavedModel saved = load_model(options);
  saved.model->to(device);
  saved.model->set_fake_quant(kernels, embedding);
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(saved));
  EvalModel model;
  model.owner = checkpoint;
  model.engine = &checkpoint->engine;
  model.tokenizer = &checkpoint->saved.tokenizer;
  model.prompt = checkpoint->saved.prompt;
  return model;
}

}  // namespace needle
