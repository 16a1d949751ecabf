// Devices that this program was not built with: plug-ins, and LibTorch's own CUDA part.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include <torch/torch.h>

#include "needle/train/device_plugin_api.h"

namespace needle {

// Loads the plug-ins that NEEDLE_DEVICE_PLUGIN names (paths, separated by ':'), then `paths`; one
// that is loaded already is left alone. They stay until the program ends. Call it before the first
// tensor is made: LibTorch asks only once which devices there are. Throws ConfigError naming the
// path and what is wrong with it. From the main thread.
void load_device_plugins(std::span<const std::string> paths);

// The plug-in that serves this type of device; null: none. Thread-safe once all are loaded.
const NeedleDevicePlugin* plugin_of(torch::DeviceType type);

// Brings LibTorch's CUDA kernels into this program, which need not be linked with them:
// libtorch_cuda.so from the folder of LibTorch's other libraries, or the file that
// NEEDLE_TORCH_CUDA names, and then needle's own CUDA plug-in (NCCL) where it lies beside the
// program. Nothing to do where CUDA is there already. Throws ConfigError when the library, or one
// that it needs, is missing. Call it before the first tensor is made. From the main thread.
void load_cuda();

// Whether NVIDIA's driver is installed. Cheap, unlike load_cuda (0.5 GB of kernels).
bool has_cuda_driver();

}  // namespace needle
