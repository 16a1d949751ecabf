#include "needle/model/fake_quant.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "needle/core/error.h"
#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

// [out, in] in float32 -> the values that codes and scales stand for.
torch::Tensor quantize_dequantize(const torch::Tensor& weight, std::int32_t max_code,
                                  std::int64_t group_size) {
  const auto in = weight.size(1);
  const auto group = std::min(group_size, in);
  const auto padding =
      (group - in % group) % group;  // a ragged last group counts as padded with zeros
  const auto padded =
      padding == 0 ? weight : torch::constant_pad_nd(weight, {0, padding});  // [out, n * group]
  const auto grouped = padded.unflatten(1, {-1, group});                     // [out, n, group]
  const auto scale = (grouped.abs().amax(-1, /*keepdim=*/true) / max_code).clamp_min(kMinScale);
  const auto codes =
      torch::round(grouped / scale).clamp(-(max_code + 1), max_code);  // half to even
  return (codes * scale).flatten(1).narrow(1, 0, in);
}

// The same in one pass, for float32 on the CPU.
torch::Tensor quantize_dequantize_on_host(const torch::Tensor& weight, std::int32_t max_code,
                                          std::int64_t group_size) {
  const auto source = weight.contiguous();
  const auto result = torch::empty_like(source);
  const QuantizedRows task{.width = source.size(1),
                           .group = std::min(group_size, source.size(1)),
                           .max_code = static_cast<float>(max_code),
                           .min_scale = kMinScale};
  const auto* values = source.const_data_ptr<float>();
  auto* out = result.data_ptr<float>();
  at::parallel_for(0, source.size(0), 64, [&](std::int64_t first, std::int64_t last) {
    row_kernels().fake_quantize(task, values, first, last, out);
  });
  return result;
}

}  // namespace

torch::Tensor fake_quantize(const torch::Tensor& weight, FakeQuant mode, std::int64_t group_size) {
  if (mode == FakeQuant::kNone) {
    return weight;
  }
  NEEDLE_CHECK(weight.dim() == 2 && weight.numel() > 0, "a kernel has two axes, got {}",
               weight.dim());
  NEEDLE_CHECK(group_size > 0, "group_size = {}", group_size);
  const auto bits = mode == FakeQuant::kInt4 ? QuantBits::kInt4 : QuantBits::kInt8;
  torch::Tensor nearest;  // [out, in]
  {
    const torch::NoGradGuard no_grad;
    const auto wide = weight.to(torch::kFloat32);
    nearest = (wide.device().is_cpu()
                   ? quantize_dequantize_on_host(wide.detach(), max_code(bits), group_size)
                   : quantize_dequantize(wide, max_code(bits), group_size))
                  .to(weight.scalar_type());
  }
  if (!torch::GradMode::is_enabled() || !weight.requires_grad()) {
    return nearest;
  }
  // Straight through. The bracket is exactly zero, so the value is `nearest` to the last bit, which
  // the usual w + (nearest - w) is not.
  return nearest + (weight - weight.detach());
}

torch::Tensor WeightPath::operator()(const torch::Tensor& weight, torch::ScalarType dtype) {
  if (mode_ == FakeQuant::kNone && weight.scalar_type() == dtype) {
    return weight;
  }
  if (torch::GradMode::is_enabled() || weight.is_inference()) {
    return fake_quantize(weight, mode_).to(dtype);
  }
  const std::lock_guard lock(mutex_);
  const auto version = static_cast<std::uint32_t>(weight._version());
  const bool current =
      kept_.value.defined() && kept_.value.scalar_type() == dtype && kept_.mode == mode_ &&
      kept_.version == version &&
      kept_.source.unsafeGetStorageImpl() == weight.storage().unsafeGetStorageImpl();
  if (!current) {
    kept_ = {.value = fake_quantize(weight, mode_).to(dtype),
             .source = weight.storage(),
             .version = version,
             .mode = mode_};
  }
  return kept_.value;
}

}  // namespace needle
