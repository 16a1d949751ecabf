// The reference's parameters as a weights file that loses nothing, without LibTorch.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/quant/group_quant.h"
#include "needle/quant/model_config.h"
#include "needle/runtime/model.h"

namespace needle::test {

struct FloatArray {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using FloatArrays = std::map<std::string, FloatArray, std::less<>>;  // by published path

struct GoldenParameters {
  ModelConfig config;
  FloatArrays arrays;
};

// Reads a JSON config as the golden folder has them: fields that ModelConfig lacks are left out.
ModelConfig golden_config(const std::filesystem::path& path);
GoldenParameters pickled_parameters(const std::filesystem::path& path);
// Tensors whose name starts with `prefix`, which is cut off.
FloatArrays stored_parameters(const std::filesystem::path& path, std::string_view prefix = "");

// By module name, in LibTorch's layout; kernels pass through the quantiser if `bits` is given.
std::map<std::string, std::vector<float>> module_parameters(const ModelConfig& config,
                                                            const FloatArrays& arrays,
                                                            std::optional<QuantBits> bits = {});

// Every matrix in `encoding`. `tokenizer`: SentencePiece bytes, or none.
void write_weights(const std::filesystem::path& path, const ModelConfig& config,
                   const std::map<std::string, std::vector<float>>& parameters,
                   WeightEncoding encoding, std::string_view tokenizer = "");

// Written to a weights file and loaded again.
std::shared_ptr<const runtime::Model> runtime_model(
    const ModelConfig& config, const std::map<std::string, std::vector<float>>& parameters,
    WeightEncoding encoding = WeightEncoding::kF32,
    runtime::Numerics numerics = runtime::Numerics::kFloat);

}  // namespace needle::test
