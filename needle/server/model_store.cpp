#include "needle/server/model_store.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
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

std::shared_ptr<const ServedModel> load(const ModelStore::Entry& entry,
                                        const runtime::LoadOptions& options) {
  const std::string bytes = read_file(entry.path);
  const PrivateCopy copy(bytes);
  try {
    return std::make_shared<const ServedModel>(
        ServedModel{.name = entry.name,
                    .fingerprint = sha256_hex(bytes).substr(0, 12),
                    .created = entry.created,
                    .model = runtime::LoadedModel::load(copy.path(), options)});
  } catch (const FormatError& error) {
    std::string message = error.what();
    if (const std::size_t at = message.find(copy.path().string()); at != std::string::npos) {
      message.replace(at, copy.path().string().size(), entry.path.string());
    }
    throw FormatError(message);
  }
}

}  // namespace

ModelStore::ModelStore(const std::vector<std::filesystem::path>& files,
                       std::filesystem::path folder, runtime::LoadOptions options)
    : files_(files), folder_(std::move(folder)), options_(options) {
  std::set<std::string> names;
  for (const auto& file : files_) {
    const auto status = status_of(file);
    if (!status) {
      throw FileError(format("{}: no such file", file));
    }
    if (!names.insert(file.stem().string()).second) {
      throw ConfigError(
          format("{}: another model is called {}, too; rename one", file, file.stem()));
    }
    open(file.stem().string());
  }
}

std::vector<ModelStore::Entry> ModelStore::list() const {
  std::vector<Entry> entries;
  const auto add = [&](const std::filesystem::path& path) {
    const auto status = status_of(path);
    const std::string name = path.stem().string();
    if (status && std::ranges::find(entries, name, &Entry::name) == entries.end()) {
      entries.push_back({.name = name,
                         .path = path,
                         .created = status->st_mtim.tv_sec,
                         .bytes = static_cast<std::uint64_t>(status->st_size)});
    }
  };
  std::ranges::for_each(files_, add);
  if (!folder_.empty()) {
    std::vector<std::filesystem::path> found;
    std::error_code ignored;
    for (const auto& item : std::filesystem::directory_iterator(folder_, ignored)) {
      if (item.path().extension() == ".needle") {
        found.push_back(item.path());
      }
    }
    std::ranges::sort(found);
    std::ranges::for_each(found, add);
  }
  return entries;
}

std::shared_ptr<const ServedModel> ModelStore::open(std::string_view name) {
  std::vector<Entry> entries = list();
  const auto found =
      name.empty() ? entries.begin() : std::ranges::find(entries, name, &Entry::name);
  if (found == entries.end()) {
    throw ApiError(404,
                   format("the model {} does not exist; GET /v1/models lists those that do",
                          excerpt(JsonValue::string(std::string(name)))),
                   {.code = "model_not_found", .param = "model"});
  }
  return open_entry(*found);
}

std::shared_ptr<const ServedModel> ModelStore::open_entry(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  const auto status = status_of(entry.path);
  const auto known = std::ranges::find(loaded_, entry.path, &Loaded::path);
  if (known != loaded_.end() &&
      (!status || (known->changed == nanoseconds(*status) && known->bytes == entry.bytes))) {
    return known->model;
  }
  try {
    Loaded fresh{.path = entry.path,
                 .changed = status ? nanoseconds(*status) : 0,
                 .bytes = entry.bytes,
                 .model = load(entry, options_)};
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
    log_warning("{}: changed, but cannot be opened; the old one goes on serving: {}", entry.path,
                error.what());
    known->changed = nanoseconds(*status);  // not again at every request
    known->bytes = entry.bytes;
    return known->model;
  }
}

}  // namespace needle
