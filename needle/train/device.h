// The one place that knows devices: chosen by name, nothing else in the program asks which one it
// is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torch/torch.h>

#include "needle/core/enum_names.h"

namespace needle {

enum class ComputeDtype { kAuto, kFloat32, kBfloat16 };
inline constexpr EnumNames<ComputeDtype, 3> kComputeDtypeNames{
    {{{ComputeDtype::kAuto, "auto"},
      {ComputeDtype::kFloat32, "float32"},
      {ComputeDtype::kBfloat16, "bfloat16"}}}};
template <>
struct EnumTable<ComputeDtype> {
  static constexpr const auto& value = kComputeDtypeNames;
};

// "auto" (the first accelerator that LibTorch has here, else the CPU), "cpu", "cuda", "cuda:1",
// "mps", "xpu" or any other name that LibTorch or a plug-in of it registered. Throws ConfigError
// when the name is unknown or there is no such device, saying which there are.
torch::Device choose_device(std::string_view name);

// "cpu", "cuda:0", ...: every device that choose_device would accept now.
std::vector<std::string> available_devices();

// Type of activations and matrix products; parameters stay float32. auto: bfloat16 on CUDA and XPU
// and on a CPU whose bfloat16 is faster (core/cpu_features.h), float32 elsewhere.
torch::ScalarType choose_compute_dtype(ComputeDtype choice, const torch::Device& device);

// Rows of logits that the loss makes at once (TokenLossOptions::block_rows): 256 stay in the cache
// of a CPU core, a GPU is only busy with more.
std::int64_t loss_block_rows(const torch::Device& device);

// Waits until the device has done everything that was asked of it. Nothing to do on the CPU.
void synchronize(const torch::Device& device);

// On the CPU the resident memory of the process, elsewhere what LibTorch's allocator holds; 0 where
// it does not say.
struct MemoryUse {
  std::int64_t current_bytes = 0;
  std::int64_t peak_bytes = 0;
};
MemoryUse memory_use(const torch::Device& device);

// Seeds LibTorch's default generators, of every device.
void seed_generators(std::uint64_t seed);

}  // namespace needle
