// The one place that knows devices: chosen by name; memory, streams, random numbers and recorded
// work of any of them. Elsewhere only the loops that are written for the CPU ask where a tensor
// lies. What LibTorch tells of every device type serves all, plug-ins included (device_plugin.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <c10/core/Event.h>
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

// "auto" (the first accelerator that there is, else the CPU), "cpu", "cuda", "cuda:1", "mps", "xpu"
// or any other name that LibTorch or a plug-in registered. CUDA is loaded when it is asked for, or
// by "auto" where NVIDIA's driver is installed. Throws ConfigError when the name is unknown or
// there is no such device, saying which there are. The first call from the main thread, before the
// first tensor is made.
torch::Device choose_device(std::string_view name);

// "cpu", "cuda:0", ...: every device that choose_device would accept now.
std::vector<std::string> available_devices();

// Type of activations and matrix products; parameters stay float32. auto: bfloat16 on CUDA, on XPU,
// where a plug-in says so, and on a CPU whose bfloat16 is faster (core/cpu_features.h), float32
// elsewhere.
torch::ScalarType choose_compute_dtype(ComputeDtype choice, const torch::Device& device);

// Rows of logits that the loss makes at once (TokenLossOptions::block_rows): 256 stay in the cache
// of a CPU core; with `factors` of bfloat16 on AMX 1024, since each block packs the embedding into
// tiles anew; a GPU is only busy with more.
std::int64_t loss_block_rows(const torch::Device& device,
                             torch::ScalarType factors = torch::kFloat32);

// Waits until the device has done everything that was asked of it. Nothing to do on the CPU.
void synchronize(const torch::Device& device);

// Uninitialised memory of the host for copies to and from the device: pinned where the device has
// such memory, so that a copy need not be waited for; plain elsewhere.
torch::Tensor empty_staging(torch::IntArrayRef sizes, torch::ScalarType dtype,
                            const torch::Device& device);

// A copy on the device, without waiting where `host` is pinned; `host` must not be changed before
// the device has come so far (it may be destroyed: LibTorch keeps pinned memory that long). The
// tensor itself if it lies there already.
torch::Tensor copy_to_device(const torch::Tensor& host, const torch::Device& device);

// A tensor on its way to the host: begun in order with the device's work, read later. On the CPU it
// is there at once. Movable; from one thread at a time.
class PendingCopy {
 public:
  PendingCopy() = default;
  explicit PendingCopy(const torch::Tensor& tensor);  // any device
  bool pending() const { return host_.defined(); }
  torch::Tensor wait();  // the values on the CPU; once

 private:
  torch::Tensor host_;
  std::optional<c10::Event> done_;
};

// Work of the device, recorded once and then repeated at the price of one call: what it reads and
// writes stays where it was. Where LibTorch can do that with any device (2.10 and later) and the
// device can (CUDA graphs).
class DeviceGraph {
 public:
  static bool is_available(const torch::Device& device);

  // Records `work`, which is not carried out by that. It must have run before with the same shapes,
  // wait for nothing, and read nothing that the host changes. Throws Error if it does not permit
  // it, and what `work` throws; nothing is being recorded then.
  DeviceGraph(const torch::Device& device, const std::function<void()>& work);
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;

  void replay();  // in order with the device's other work; does not wait

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// On the CPU the resident memory of the process, elsewhere what LibTorch's allocator holds; 0 where
// it does not say.
struct MemoryUse {
  std::int64_t current_bytes = 0;
  std::int64_t peak_bytes = 0;
};
MemoryUse memory_use(const torch::Device& device);

// Seeds LibTorch's default generators, of every device. A plug-in's without one of its own draws
// from the CPU's. Nothing else is random, so a checkpoint needs no generator's state.
void seed_generators(std::uint64_t seed);

}  // namespace needle
