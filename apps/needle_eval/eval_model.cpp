#include "apps/needle_eval/eval_model.h"

#include "needle/core/error.h"
#include "needle/runtime/loaded_model.h"

namespace needle {

EvalModel open_model(const EvalModelOptions& options) {
  const std::filesystem::path path = options.path;
  EvalModel model;
  const bool weights_file = path.extension() == ".needle";
  if (weights_file) {
    if (options.kernels != "none" || options.embedding != "none") {
      throw ConfigError(format(
          "{}: --kernels and --embedding quantise a checkpoint; a .needle file is as it is", path));
    }
  }
  if (weights_file && !options.libtorch) {
    const auto loaded = std::make_shared<const runtime::LoadedModel>(runtime::LoadedModel::load(
        path, {.numerics = *runtime::kNumericsNames.parse(options.numerics)}));
    model.owner = loaded;
    model.engine = &loaded->engine();
    model.tokenizer = &loaded->tokenizer();
    model.prompt = loaded->prompt_config();
  } else {
    model = open_checkpoint(options);
  }
  model.name = (path.has_filename() ? path : path.parent_path()).filename().string();
  return model;
}

}  // namespace needle
