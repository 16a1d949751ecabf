#include "needle/server/model_search.h"

#include <algorithm>
#include <set>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

struct Found {
  std::filesystem::path path;
  std::filesystem::file_time_type time;
};

void look(const std::filesystem::path& folder, std::size_t depth, std::vector<Found>& found) {
  std::error_code error;
  for (auto item = std::filesystem::directory_iterator(folder, error);
       !error && item != std::filesystem::directory_iterator(); item.increment(error)) {
    std::error_code gone;
    // A writer's temporary file begins with a point.
    if (item->path().filename().string().starts_with('.')) {
      continue;
    }
    if (item->path().extension() == ".needle" && item->is_regular_file(gone)) {
      if (const auto time = item->last_write_time(gone); !gone) {
        found.push_back({item->path(), time});
      }
    } else if (depth > 0 && !item->is_symlink(gone) && item->is_directory(gone)) {
      look(item->path(), depth - 1, found);
    }
  }
}

std::vector<std::filesystem::path> newest_first(const std::filesystem::path& folder,
                                                std::size_t depth) {
  std::vector<Found> found;
  look(folder, depth, found);
  std::ranges::sort(found, [](const Found& a, const Found& b) {
    return a.time != b.time ? a.time > b.time : a.path < b.path;
  });
  std::vector<std::filesystem::path> paths;
  for (Found& file : found) {
    paths.push_back(std::move(file.path));
  }
  return paths;
}

std::vector<ModelFile> with_names(const std::vector<std::filesystem::path>& paths) {
  std::vector<ModelFile> files;
  std::set<std::string> names;
  for (const auto& path : paths) {
    const std::string stem = path.stem().string();
    for (const std::string& name : {stem, path.parent_path().filename().string() + "-" + stem}) {
      if (names.insert(name).second) {
        files.push_back({.name = name, .path = path});
        break;
      }
    }
  }
  return files;
}

}  // namespace

std::vector<ModelFile> models_in(const std::filesystem::path& folder, std::size_t depth) {
  return with_names(newest_first(folder, depth));
}

std::vector<ModelFile> models_at_hand(const std::filesystem::path& folder) {
  constexpr std::size_t kDepth = 2;  // runs/NAME/export/model.needle
  std::vector<std::filesystem::path> paths = newest_first(folder, 0);
  const auto add = [&](const std::filesystem::path& place) {
    const auto more = newest_first(place, kDepth);
    paths.insert(paths.end(), more.begin(), more.end());
  };
  add(folder / "runs");
  try {
    add(needle_home());
  } catch (const ConfigError&) {  // neither NEEDLE_HOME nor HOME is set: nothing is there
  }
  return with_names(paths);
}

std::string no_model_hint() {
  return "there is no model yet: no .needle file in this folder, in runs/ or in NEEDLE_HOME. Train "
         "one (scripts/quickstart, or needle-train finetune and needle-export export), put it "
         "there "
         "and ask again, or start needle-serve with --model FILE.needle";
}

}  // namespace needle
