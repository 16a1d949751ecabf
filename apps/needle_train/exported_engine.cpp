#include "apps/needle_train/exported_engine.h"

#include <filesystem>
#include <string>
#include <system_error>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/export/export_weights.h"
#include "needle/runtime/loaded_model.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

fs::path temporary_folder() {
  std::error_code failure;
  const fs::path folder = fs::temp_directory_path(failure);
  if (failure) {
    throw FileError(format("no folder for temporary files: {}; set TMPDIR to one that exists",
                           failure.message()));
  }
  return folder;
}

class TemporaryPath {
 public:
  TemporaryPath() : path_(temporary_folder() / format("needle-validation-{}.needle", ::getpid())) {}
  ~TemporaryPath() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;
  const fs::path& get() const { return path_; }

 private:
  fs::path path_;
};

}  // namespace

std::shared_ptr<const Engine> exported_engine(const Needle& model, const Tokenizer& tokenizer,
                                              const PromptConfig& prompt) {
  const TemporaryPath file;
  export_weights(model, tokenizer, prompt, Json::object(), {}, file.get());
  const auto loaded = std::make_shared<const runtime::LoadedModel>(
      runtime::LoadedModel::load(file.get(), {.verify_checksums = false}));
  return {loaded, &loaded->engine()};
}

}  // namespace needle
