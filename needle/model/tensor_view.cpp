#include "needle/model/tensor_view.h"

#include <cstring>

#include "needle/core/error.h"

namespace needle {

torch::ScalarType to_scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
      return torch::kBool;
    case Dtype::kU8:
      return torch::kUInt8;
    case Dtype::kI8:
      return torch::kInt8;
    case Dtype::kI16:
      return torch::kInt16;
    case Dtype::kI32:
      return torch::kInt32;
    case Dtype::kI64:
      return torch::kInt64;
    case Dtype::kF16:
      return torch::kFloat16;
    case Dtype::kBF16:
      return torch::kBFloat16;
    case Dtype::kF32:
      return torch::kFloat32;
    case Dtype::kF64:
      return torch::kFloat64;
  }
  throw Error(format("no tensor type for dtype number {}", static_cast<int>(dtype)));
}

Dtype to_dtype(torch::ScalarType type) {
  for (const auto& [dtype, name] : kDtypeNames.entries) {
    if (to_scalar_type(dtype) == type) {
      return dtype;
    }
  }
  throw Error(format("a tensor of type {} cannot be written; convert it to one of {}",
                     std::string(c10::toString(type)), kDtypeNames.list()));
}

torch::Tensor to_tensor(const TensorView& view) {
  auto tensor = torch::empty(view.shape, to_scalar_type(view.dtype));
  NEEDLE_CHECK(view.bytes.size() == tensor.nbytes(), "a view of {} bytes, its shape needs {}",
               view.bytes.size(), tensor.nbytes());
  if (!view.bytes.empty()) {
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
  }
  return tensor;
}

TensorView view_of(const torch::Tensor& tensor) {
  NEEDLE_CHECK(tensor.is_cpu() && tensor.is_contiguous(), "use to_host first");
  return {.dtype = to_dtype(tensor.scalar_type()),
          .shape = tensor.sizes().vec(),
          .bytes = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
}

torch::Tensor to_host(const torch::Tensor& tensor) {
  return tensor.detach().to(torch::kCPU).contiguous();
}

torch::Tensor to_float16(std::string_view name, const torch::Tensor& tensor,
                         std::string_view where) {
  const auto values = tensor.detach();
  const auto rounded = values.to(torch::kFloat16);
  if (rounded.isinf().logical_and(values.isfinite()).any().item<bool>()) {
    throw FormatError(
        format("{}: '{}' holds a value of magnitude {}, float16 ends at 65504; store float32",
               where, name, values.abs().max().item<float>()));
  }
  return rounded;
}

void save_tensors(const std::filesystem::path& path, const NamedTensors& tensors,
                  const Metadata& metadata) {
  NamedTensors on_host;  // keeps the memory that the views point into
  std::map<std::string, TensorView, std::less<>> views;
  for (const auto& [name, tensor] : tensors) {
    const auto& host = on_host[name] = to_host(tensor);
    views[name] = view_of(host);
  }
  write_safetensors(path, views, metadata);
}

NamedTensors load_tensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  NamedTensors tensors;
  for (const auto& [name, view] : file.tensors()) {
    tensors[name] = to_tensor(view);
  }
  return tensors;
}

}  // namespace needle
