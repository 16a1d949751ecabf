// A host batch as tensors on a device.
#pragma once

#include <compare>
#include <cstdint>

#include <torch/torch.h>

#include "needle/data/batch.h"
#include "needle/model/needle.h"
#include "needle/train/loss.h"

namespace needle {

struct DeviceBatch {
  ModelInput input;
  torch::Tensor target;   // int64 [B, L]
  torch::Tensor weights;  // float32 [B, L], looked up by token class; undefined: all 1
                          // (pretraining, validation)
};

struct DeviceContrastiveBatch {
  torch::Tensor queries;  // int64 [B, query_len]
  torch::Tensor tools;    // int64 [B, tool_len]
};

// What decides where the arrays of a packed batch lie.
struct BatchLayout {
  std::int64_t rows = 0;
  std::int64_t enc_len = 0;
  std::int64_t dec_len = 0;
  bool packed = false;    // has segments
  bool weighted = false;  // has weights
  // ModelInput::most_segments: a power of two, so that few values come up.
  std::int64_t most_segments = 0;
  auto operator<=>(const BatchLayout&) const = default;
};

// A batch as one array of the host (int32, weights by their bits), and back from a copy of it on
// the device. Throws as to_device.
struct PackedBatch {
  torch::Tensor values;
  BatchLayout layout;
};
PackedBatch pack_batch(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
                       const ClassWeights* class_weights);
DeviceBatch unpack_batch(const torch::Tensor& values, const BatchLayout& layout);

// One copy to the device for all of a batch, which is not waited for where the device has pinned
// memory. `vocab_size`: ids outside [0, vocab_size) are refused
// here, because a GPU would only abort. Throws Error when an array does not have the length that
// rows and lengths ask for, DataError naming row and position for an id or a class out of range.
// `class_weights` null: unweighted even if the batch has classes.
DeviceBatch to_device(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
                      const ClassWeights* class_weights);
DeviceContrastiveBatch to_device(const ContrastiveBatch& batch, const torch::Device& device,
                                 std::int64_t vocab_size);

}  // namespace needle
