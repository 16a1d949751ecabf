// The models that a server offers: files known by name, opened when first asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "needle/runtime/loaded_model.h"

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
  // `files`: served by their names, the first is the default. `folder`: its *.needle files too,
  // looked up anew at every list(); empty: none. Throws FileError, FormatError for a file of
  // `files` that cannot be opened, and ConfigError if two have one name.
  ModelStore(const std::vector<std::filesystem::path>& files, std::filesystem::path folder,
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
  std::shared_ptr<const ServedModel> open_entry(const Entry& entry);

  std::vector<std::filesystem::path> files_;
  std::filesystem::path folder_;
  runtime::LoadOptions options_;
  std::mutex mutex_;
  std::vector<Loaded> loaded_;
};

}  // namespace needle
