#include "needle/server/model_store.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "needle/core/file.h"
#include "needle/core/log.h"
#include "needle/server/api_error.h"

namespace needle {
namespace {

// The file's bytes under a name that nobody else can write to.
class PrivateCopy {
 public:
  explicit PrivateCopy(std::string_view bytes) : descriptor_(::memfd_create("model", MFD_CLOEXEC)) {
    for (std::size_t done = 0; descriptor_ >= 0 && done < bytes.size();) {
      const ssize_t count = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
      if (count <= 0) {
        ::close(std::exchange(descriptor_, -1));
        break;
      }
      done += static_cast<std::size_t>(count);
    }
    if (descriptor_ < 0) {
      throw FileError("no memory for a copy of the model");
    }
  }
  ~PrivateCopy() { ::close(descriptor_); }
  PrivateCopy(const PrivateCopy&) = delete;
  PrivateCopy& operator=(const PrivateCopy&) = delete;
  std::filesystem::path path() const { return format("/proc/self/fd/{}", descriptor_); }

 private:
  int descriptor_;
};

std::optional<struct stat> status_of(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return {};
  }
  return status;
}

std::int64_t nanoseconds(const struct stat& status) {
  return static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

std::shared_ptr<const ServedModel> load(const ModelFile& file, const struct stat& status,
                                        const runtime::LoadOptions& options) {
  const std::string bytes = read_file(file.path);
  const PrivateCopy copy(bytes);
  try {
    return std::make_shared<const ServedModel>(
        ServedModel{.name = file.name,
                    .fingerprint = sha256_hex(bytes).substr(0, 12),
                    .created = status.st_mtim.tv_sec,
                    .model = runtime::LoadedModel::load(copy.path(), options)});
  } catch (const FormatError& error) {
    std::string message = error.what();
    if (const std::size_t at = message.find(copy.path().string()); at != std::string::npos) {
      message.replace(at, copy.path().string().size(), file.path.string());
    }
    throw FormatError(message);
  }
}

}  // namespace

ModelStore::ModelStore(const std::vector<std::filesystem::path>& files, Finder finder,
                       runtime::LoadOptions options)
    : finder_(std::move(finder)), options_(options) {
  for (const auto& path : files) {
    const ModelFile file{.name = path.stem().string(), .path = path};
    if (std::ranges::find(files_, file.name, &ModelFile::name) != files_.end()) {
      throw ConfigError(format("{}: another model is called {}, too; rename one", path, file.name));
    }
    open_file(file);
    files_.push_back(file);
  }
}

std::vector<ModelStore::Entry> ModelStore::list() const {
  const std::lock_guard lock(mutex_);
  return list_locked();
}

std::vector<ModelStore::Entry> ModelStore::list_locked() const {
  std::vector<Entry> entries;
  const auto add = [&](const ModelFile& file) {
    if (std::ranges::find(entries, file.name, &Entry::name) != entries.end()) {
      return;
    }
    Entry entry{.name = file.name, .path = file.path};
    const auto known = std::ranges::find(loaded_, file.path, &Loaded::path);
    if (const auto status = status_of(file.path)) {
      entry.created = status->st_mtim.tv_sec;
      entry.bytes = static_cast<std::uint64_t>(status->st_size);
    } else if (known != loaded_.end()) {  // deleted, but it lives in memory
      entry.created = known->model->created;
      entry.bytes = known->bytes;
    } else {
      return;
    }
    entries.push_back(std::move(entry));
  };
  std::ranges::for_each(files_, add);
  if (finder_) {
    if (default_ && status_of(default_->path)) {
      add(*default_);
    }
    std::ranges::for_each(finder_(), add);
  }
  return entries;
}

std::shared_ptr<const ServedModel> ModelStore::open(std::string_view name) {
  const std::lock_guard lock(mutex_);
  if (name.empty()) {
    return files_.empty() ? open_default() : open_file(files_.front());
  }
  const auto named = std::ranges::find(files_, name, &ModelFile::name);
  if (named != files_.end()) {
    return open_file(*named);
  }
  for (const Loaded& loaded : loaded_) {  // no need to look through folders
    if (loaded.model->name == name && status_of(loaded.path)) {
      return open_file({.name = loaded.model->name, .path = loaded.path});
    }
  }
  const std::vector<Entry> entries = list_locked();
  const auto found = std::ranges::find(entries, name, &Entry::name);
  if (found == entries.end()) {
    throw ApiError(404,
                   entries.empty()
                       ? no_model_hint()
                       : format("the model {} does not exist; GET /v1/models lists those that do",
                                excerpt(JsonValue::string(std::string(name)))),
                   {.code = "model_not_found", .param = "model"});
  }
  return open_file({.name = found->name, .path = found->path});
}

std::shared_ptr<const ServedModel> ModelStore::open_default() {
  if (default_ && status_of(default_->path)) {
    return open_file(*default_);
  }
  for (const Entry& entry : list_locked()) {
    const ModelFile file{.name = entry.name, .path = entry.path};
    try {
      auto model = open_file(file);
      default_ = file;
      return model;
    } catch (const Error& error) {
      log_warning("{}: not served: {}", file.path, error.what());
    }
  }
  throw ApiError(404, no_model_hint(), {.code = "model_not_found", .param = "model"});
}

std::shared_ptr<const ServedModel> ModelStore::open_file(const ModelFile& file) {
  const auto status = status_of(file.path);
  const auto bytes = status ? static_cast<std::uint64_t>(status->st_size) : 0;
  const auto known = std::ranges::find(loaded_, file.path, &Loaded::path);
  if (known != loaded_.end() &&
      (!status || (known->changed == nanoseconds(*status) && known->bytes == bytes))) {
    return known->model;
  }
  if (!status) {
    throw FileError(format("{}: no such file", file.path));
  }
  try {
    Loaded fresh{.path = file.path,
                 .changed = nanoseconds(*status),
                 .bytes = bytes,
                 .model = load(file, *status, options_)};
    if (known == loaded_.end()) {
      loaded_.push_back(std::move(fresh));
      return loaded_.back().model;
    }
    *known = std::move(fresh);
    return known->model;
  } catch (const Error& error) {
    if (known == loaded_.end()) {
      throw;
    }
    log_warning("{}: changed, but cannot be opened; the old one goes on serving: {}", file.path,
                error.what());
    known->changed = nanoseconds(*status);  // not again at every request
    known->bytes = bytes;
    return known->model;
  }
}

}  // namespace needle
