// LibTorch tensors to and from core's TensorView and safetensors files.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include <torch/torch.h>

#include "needle/core/safetensors.h"

namespace needle {

using NamedTensors = std::map<std::string, torch::Tensor, std::less<>>;
using Metadata = std::map<std::string, std::string, std::less<>>;

torch::ScalarType to_scalar_type(Dtype dtype);
Dtype to_dtype(
    torch::ScalarType type);  // throws needle::Error on a type that safetensors here lacks

torch::Tensor to_tensor(const TensorView& view);  // a copy on the CPU, same dtype and shape
// A view into `tensor`, which must be contiguous, on the CPU, and outlive it.
TensorView view_of(const torch::Tensor& tensor);
torch::Tensor to_host(
    const torch::Tensor& tensor);  // detached, contiguous, on the CPU; shares memory if it can

// Rounded to float16. Throws FormatError naming `where` and `name` if a finite value does not fit
// (beyond 65504).
torch::Tensor to_float16(std::string_view name, const torch::Tensor& tensor,
                         std::string_view where);

// A safetensors file of tensors from any device, written atomically; and back, onto the CPU.
void save_tensors(const std::filesystem::path& path, const NamedTensors& tensors,
                  const Metadata& metadata = {});
NamedTensors load_tensors(const std::filesystem::path& path);

}  // namespace needle
