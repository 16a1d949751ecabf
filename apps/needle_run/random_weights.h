// Weights drawn at random, for measuring a shape that nobody has trained.
#pragma once

#include <filesystem>

namespace needle {

// Writes a .needle file of the shape in a model config (JSON): INT4 kernels and embedding, and a
// tokenizer of made-up words. The same bytes for the same config. Throws ConfigError if the shape
// is not valid or has no room for the 262 pieces that every tokenizer has, FileError as files do.
void write_random_weights(const std::filesystem::path& config, const std::filesystem::path& path);

// Such a file among the system's temporary ones, gone with this object; a map of it stays.
class RandomWeights {
 public:
  explicit RandomWeights(const std::filesystem::path& config);
  ~RandomWeights();
  RandomWeights(const RandomWeights&) = delete;
  RandomWeights& operator=(const RandomWeights&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace needle
