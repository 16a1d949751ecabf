#include "needle/train/checkpoint_folder.h"

#include <algorithm>
#include <charconv>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr const char* kManifest = "manifest.json";

std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) {
    return std::nullopt;
  }
  std::int64_t step = 0;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  const auto [stopped, error] = std::from_chars(begin, end, step);
  return error == std::errc() && stopped == end && step >= 0 ? std::optional(step) : std::nullopt;
}

}  // namespace

std::string checkpoint_damage(const fs::path& checkpoint) {
  try {
    const Json manifest = read_json_file(checkpoint / kManifest);
    if (!manifest.is_object() || !manifest.contains("files") || !manifest["files"].is_object()) {
      return format("{}: no list of files", checkpoint / kManifest);
    }
    for (const auto& [name, entry] : manifest["files"].items()) {
      const fs::path path = checkpoint / fs::path(name).filename();
      if (!fs::is_regular_file(path)) {
        return format("{} is missing", path);
      }
      const auto size = fs::file_size(path);
      if (!entry.is_object() || entry.value("bytes", Json()) != Json(size)) {
        return format("{} has {} bytes, its manifest says {}", path, size, entry.dump());
      }
      if (entry.value("sha256", std::string()) != sha256_file(path)) {
        return format("{} has changed: its SHA-256 is not the one in its manifest", path);
      }
    }
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

void write_manifest(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().filename() != kManifest) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  Json files = Json::object();
  for (const fs::path& path : paths) {
    files[path.filename().string()] = {{"bytes", fs::file_size(path)},
                                       {"sha256", sha256_file(path)}};
  }
  write_json_file(folder / kManifest, {{"files", files}});
}

CheckpointFolder::CheckpointFolder(const fs::path& run_folder, std::int64_t keep)
    : folder_(run_folder / "checkpoints"), keep_(keep) {
  NEEDLE_CHECK(keep >= 1, "keep is {}", keep);
}

fs::path CheckpointFolder::path_of(std::int64_t step) const {
  return folder_ / format("{}{:06d}", kPrefix, step);
}

fs::path CheckpointFolder::save(std::int64_t step,
                                const std::function<void(const fs::path& folder)>& write_files) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    throw FileError(format("{}: cannot be made: {}", folder_, error.message()));
  }
  const fs::path path = path_of(step);
  AtomicDirectory directory(path);
  write_files(directory.temporary_path());
  write_manifest(directory.temporary_path());
  directory.commit();
  write_file_atomic(folder_ / "latest", path.filename().string() + "\n");
  rotate();
  return path;
}

void CheckpointFolder::mark_best(std::int64_t step) {
  write_file_atomic(folder_ / "best", path_of(step).filename().string() + "\n");
}

std::vector<CheckpointRef> CheckpointFolder::list() const {
  std::vector<CheckpointRef> found;
  if (fs::is_directory(folder_)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
      const auto step = step_of(entry.path().filename().string());
      if (step && entry.is_directory()) {
        found.push_back({*step, entry.path()});
      }
    }
  }
  std::sort(found.begin(), found.end(),
            [](const CheckpointRef& a, const CheckpointRef& b) { return a.step < b.step; });
  return found;
}

std::optional<CheckpointRef> CheckpointFolder::marked(const char* marker) const {
  const fs::path path = folder_ / marker;
  if (!fs::is_regular_file(path)) {
    return std::nullopt;
  }
  std::string name = read_file(path);
  name.erase(name.find_last_not_of(" \r\n") + 1);
  const auto step = step_of(name);
  if (!step || !fs::is_directory(folder_ / name)) {
    return std::nullopt;
  }
  return CheckpointRef{*step, folder_ / name};
}

std::optional<CheckpointRef> CheckpointFolder::best() const { return marked("best"); }

std::optional<CheckpointRef> CheckpointFolder::newest_valid(std::vector<std::string>& warnings,
                                                            std::int64_t last_step) const {
  std::vector<CheckpointRef> all = list();
  std::erase_if(all, [last_step](const CheckpointRef& ref) { return ref.step > last_step; });
  for (auto checkpoint = all.rbegin(); checkpoint != all.rend(); ++checkpoint) {
    const std::string damage = checkpoint_damage(checkpoint->path);
    if (damage.empty()) {
      return *checkpoint;
    }
    warnings.push_back(format("damaged checkpoint left out: {}", damage));
  }
  if (!all.empty()) {
    throw FormatError(format("{}: all {} checkpoints are damaged; the newest: {}", folder_,
                             all.size(), warnings.front()));
  }
  return std::nullopt;
}

void CheckpointFolder::remove_after(std::int64_t step) {
  write_file_atomic(folder_ / "latest", path_of(step).filename().string() + "\n");
  const std::vector<CheckpointRef> all = list();
  for (auto one = all.rbegin(); one != all.rend() && one->step > step; ++one) {
    std::error_code error;
    fs::remove_all(one->path, error);
    if (error) {
      throw FileError(format("{}: cannot be removed: {}", one->path, error.message()));
    }
  }
}

void CheckpointFolder::rotate() {
  std::vector<CheckpointRef> all = list();
  const auto best_one = best();
  std::erase_if(all,
                [&](const CheckpointRef& ref) { return best_one && ref.step == best_one->step; });
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < all.size(); ++i) {
    std::error_code ignored;  // an old checkpoint that cannot be removed does no harm
    fs::remove_all(all[i].path, ignored);
  }
}

fs::path resolve_checkpoint(const fs::path& path) {
  if (fs::is_regular_file(path / "model.safetensors")) {
    return path;
  }
  const CheckpointFolder folder(path);
  if (const auto best = folder.best()) {
    return best->path;
  }
  std::vector<std::string> warnings;
  if (const auto newest = folder.newest_valid(warnings)) {
    return newest->path;
  }
  throw FileError(
      format("{}: no checkpoint here: expected model.safetensors, or a run with checkpoints/step-*",
             path));
}

}  // namespace needle
