// NCCL for needle's programs, which are built without CUDA: a plug-in that lies beside them and is
// loaded with libtorch_cuda (needle/train/device_plugin.h: load_cuda). Not tested on hardware.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>

#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "needle/train/device_plugin_api.h"

namespace {

constexpr const char* kTorchVersion = NEEDLE_TORCH_VERSION;

void* create_group(const NeedleGroupRequest* request, char* error, size_t error_size) {
  try {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(request->device_index));
    auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    options->timeout =
        std::chrono::milliseconds(static_cast<std::int64_t>(1000.0 * request->timeout_s));
    auto store =
        c10::intrusive_ptr<c10d::Store>::reclaim_copy(static_cast<c10d::Store*>(request->store));
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), request->rank,
                                                             request->size, std::move(options));
    return static_cast<c10d::Backend*>(group.release());
  } catch (const std::exception& failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return nullptr;
  }
}

}  // namespace

extern "C" const NeedleDevicePlugin* needle_device_plugin(const NeedleDeviceHost* host, char* error,
                                                          size_t error_size) {
  static const NeedleDevicePlugin plugin{.version = NEEDLE_DEVICE_PLUGIN_VERSION,
                                         .name = "NCCL",
                                         .device = "cuda",
                                         .bfloat16 = 1,
                                         .create_group = &create_group};
  if (std::strcmp(host->torch_version, kTorchVersion) != 0) {
    std::snprintf(error, error_size, "built with LibTorch %s, the program with %s", kTorchVersion,
                  host->torch_version);
    return nullptr;
  }
  return &plugin;
}
