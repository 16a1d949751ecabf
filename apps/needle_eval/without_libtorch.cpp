// What this program says of checkpoints when it was built without LibTorch.
#include "needle/core/error.h"

#include "apps/needle_eval/commands.h"
#include "apps/needle_eval/eval_model.h"

namespace needle {

EvalModel open_checkpoint(const EvalModelOptions& options) {
  throw ConfigError(
      format("{}: this needle-eval was built without LibTorch and reads .needle files only; make "
             "one with needle-export, or build with NEEDLE_BUILD_TRAINING=ON",
             options.path));
}

void add_perplexity_command(CLI::App& /*app*/) {}

}  // namespace needle
