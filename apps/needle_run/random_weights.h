// Weights drawn at random, for measuring a shape that nobody has trained.
#pragma once

#include <filesystem>
#include <memory>

#include "needle/quant/weights_file.h"

namespace needle {

// A file of the shape in a model config (JSON), INT4 kernels and embedding, without a tokenizer.
// Written to the system's folder for temporary files and gone with the result. Throws ConfigError
// or FileError.
std::shared_ptr<const WeightsFile> random_weights(const std::filesystem::path& config);

}  // namespace needle
