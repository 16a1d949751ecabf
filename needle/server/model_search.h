// Where a server looks for models that nobody named.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace needle {

struct ModelFile {
  std::string name;  // what clients call it
  std::filesystem::path path;
};

// The *.needle files of a folder and, `depth` levels deep, of its folders: the newest first. Names
// are the files' without ".needle"; where two have one name, the older is called by its folder, too
// ("mine-model"), or left out if that is taken. Folders that cannot be read count as empty.
std::vector<ModelFile> models_in(const std::filesystem::path& folder, std::size_t depth = 0);

// What is at hand, the best first: the files of `folder`, then those of its runs/, then those of
// NEEDLE_HOME (both two levels deep), each newest first.
std::vector<ModelFile> models_at_hand(const std::filesystem::path& folder = ".");

// For people: where models_at_hand looks, and how to get a model.
std::string no_model_hint();

}  // namespace needle
