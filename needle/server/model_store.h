// The models that a server offers: files known by name, opened when first asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/runtime/loaded_model.h"
#include "needle/server/model_search.h"

namespace needle {

struct ServedModel {
  std::string name;          // the file's name without ".needle"
  std::string fingerprint;   // of the file's bytes: 12 hexadecimal digits
  std::int64_t created = 0;  // the file's time, Unix seconds
  runtime::LoadedModel model;
};

// Thread-safe. A name never becomes a path: only files that were found can be asked for. Each model
// is a private copy in memory, so that writing over its file while it serves harms nobody; a file
// that changed is opened again, and if that fails the old one goes on serving.
class ModelStore {
 public:
  using Finder = std::function<std::vector<ModelFile>()>;

  // `files`: served by their names, the first is the default. `finder`: gives more, asked anew at
  // every list(); may be empty. Without `files` the default is the first of the finder's that can
  // be opened. Throws FileError, FormatError for a file of `files` that cannot be opened, and
  // ConfigError if two have one name.
  ModelStore(const std::vector<std::filesystem::path>& files, Finder finder,
             runtime::LoadOptions options);

  struct Entry {
    std::string name;
    std::filesystem::path path;
    std::int64_t created = 0;
    std::uint64_t bytes = 0;
  };
  std::vector<Entry> list() const;  // the default first

  // "": the default. Throws ApiError 404 for a name that is not listed, 500 for a file that cannot
  // be opened.
  std::shared_ptr<const ServedModel> open(std::string_view name);

 private:
  struct Loaded {
    std::filesystem::path path;
    std::int64_t changed = 0;  // the file's time in nanoseconds, and its size
    std::uint64_t bytes = 0;
    std::shared_ptr<const ServedModel> model;
  };
  std::vector<Entry> list_locked() const;
  std::shared_ptr<const ServedModel> open_default();
  std::shared_ptr<const ServedModel> open_file(const ModelFile& file);

  std::vector<ModelFile> files_;
  Finder finder_;
  runtime::LoadOptions options_;
  mutable std::mutex mutex_;
  std::vector<Loaded> loaded_;
  std::optional<ModelFile> default_;  // of the finder's
};

}  // namespace needle
