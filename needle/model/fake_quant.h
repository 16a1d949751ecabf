// Quantisation-aware training: a dense weight enters the forward pass with the values it will have
// in the deployed file, and its gradient passes straight through (specification, section 6). The
// rule itself is quant/group_quant; this is the same arithmetic in tensor operations, tested to
// give equal values.
#pragma once

#include <cstdint>
#include <mutex>

#include <torch/torch.h>

#include "needle/core/enum_names.h"
#include "needle/quant/group_quant.h"

namespace needle {

enum class FakeQuant { kNone, kInt4, kInt8 };
inline constexpr EnumNames<FakeQuant, 3> kFakeQuantNames{
    {{{FakeQuant::kNone, "none"}, {FakeQuant::kInt4, "int4"}, {FakeQuant::kInt8, "int8"}}}};
template <>
struct EnumTable<FakeQuant> {
  static constexpr const auto& value = kFakeQuantNames;
};

// `weight` [out, in], groups along `in`: the nearest values that the quantised file can hold, in
// the weight's dtype. The forward value is exactly code * scale; the gradient is the identity.
// kNone returns the weight.
torch::Tensor fake_quantize(const torch::Tensor& weight, FakeQuant mode,
                            std::int64_t group_size = kGroupSize);

// A weight's way into a matrix product: quantised when asked, then cast to the type of the
// activations. Without gradients (evaluation, inference) the result is kept until the weight
// changes, so a token loop quantises once. Safe from several threads as long as nobody writes to
// the weight.
class WeightPath {
 public:
  void set_mode(FakeQuant mode) { mode_ = mode; }
  FakeQuant mode() const { return mode_; }

  // `weight` is always the same parameter of the owner; [out, in].
  torch::Tensor operator()(const torch::Tensor& weight, torch::ScalarType dtype);

 private:
  struct Kept {
    torch::Tensor value;
    c10::Storage source;  // held, so that its address cannot come back with other contents
    std::uint32_t version = 0;
    FakeQuant mode = FakeQuant::kNone;
  };

  FakeQuant mode_ = FakeQuant::kNone;
  std::mutex mutex_;
  Kept kept_;
};

}  // namespace needle
