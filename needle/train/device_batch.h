// A host batch as tensors on a device.
#pragma once

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

// One copy to the device for all of a batch. `vocab_size`: ids outside [0, vocab_size) are refused
// here, because a GPU would only abort. Throws Error when an array does not have the length that
// rows and lengths ask for, DataError naming row and position for an id or a class out of range.
// `class_weights` null: unweighted even if the batch has classes.
DeviceBatch to_device(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
                      const ClassWeights* class_weights);
DeviceContrastiveBatch to_device(const ContrastiveBatch& batch, const torch::Device& device,
                                 std::int64_t vocab_size);

}  // namespace needle
