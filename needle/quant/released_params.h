// The published checkpoint (`needle.pkl`) as plain data: its config and its arrays by their
// published paths (specification, sections 1 and 2). Read by the restricted pickle reader: nothing
// in the file is executed.
//
// Layers are stacked on the first axis, kernels are input-major (in, out):
// "encoder/layers/EncoderBlock_0/self_attn/q_proj/kernel" has the shape [layers, d, d].
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "needle/core/pickle.h"
#include "needle/quant/model_config.h"

namespace needle {

using ReleasedParams = std::map<std::string, PickleArray, std::less<>>;

struct ReleasedCheckpoint {
  // Fields that the file leaves out have the published program's defaults, which are smaller than
  // ModelConfig's.
  ModelConfig config;
  // Fields of the published config that ModelConfig has not.
  double dropout_rate = 0.1;
  std::string dtype = "bfloat16";  // compute type: bfloat16, float16 or float32
  std::int64_t num_memory_slots = 64;

  ReleasedParams params;  // float16 as published; float32 and float64 are read, too
  std::optional<std::int64_t> pretrain_step;
};

// What an absent config field means to the published program.
ModelConfig released_config_defaults();

// Every array that a checkpoint of this shape holds, by its path.
std::map<std::string, std::vector<std::int64_t>> released_shapes(const ModelConfig& config);

// Throws FormatError or ConfigError naming the path and the field or array: not a pickle of plain
// data, no params or config, a config value of a wrong type or range, an array that is missing,
// unknown or of another shape. Unknown config fields and unknown entries beside params are ignored.
ReleasedCheckpoint read_released_checkpoint(const std::filesystem::path& path);

// Writes a pickle for the published program, atomically. `checkpoint.params` must be exactly
// released_shapes() of its config: throws needle::Error otherwise.
void write_released_checkpoint(const std::filesystem::path& path,
                               const ReleasedCheckpoint& checkpoint);

}  // namespace needle
