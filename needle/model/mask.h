// Who may attend to whom: bool tensors, true = may attend (specification, section 1).
#pragma once

#include <cstdint>
#include <utility>

#include <torch/torch.h>

#include "needle/core/enum_names.h"
#include "needle/model/range_attention.h"
#include "needle/model/segment_attention.h"

namespace needle {

torch::Tensor padding_mask(const torch::Tensor& tokens,
                           std::int64_t pad_id);                       // [B, T] -> [B, 1, 1, T]
torch::Tensor causal_mask(std::int64_t length, torch::Device device);  // [1, 1, L, L]
// Packed rows: equal segments, 0 (padding) with nobody. [B, T], [B, S] -> [B, 1, T, S].
torch::Tensor segment_mask(const torch::Tensor& query_segments, const torch::Tensor& key_segments);

enum class AttentionKernel {
  kExact,  // scores and softmax as written in the specification
  kFused,  // the library's scaled_dot_product_attention: equal within rounding, less memory, faster
  kRanges,    // on a CPU, whole rows: own products over segments and words (range_attention.h);
              // elsewhere as kFused
  kLayers,    // on a CPU, no dropout: each gated attention is one function of its own over those
              // ranges (fused_layer.h); otherwise as kRanges
  kSegments,  // packed rows on a device with variable-length flash attention, bfloat16
              // (segment_attention.h); elsewhere as kFused
};
inline constexpr EnumNames<AttentionKernel, 5> kAttentionKernelNames{
    {{{AttentionKernel::kExact, "exact"},
      {AttentionKernel::kFused, "fused"},
      {AttentionKernel::kRanges, "ranges"},
      {AttentionKernel::kLayers, "layers"},
      {AttentionKernel::kSegments, "segments"}}}};
// Works on ranges where rows have them.
inline bool takes_ranges(AttentionKernel kernel) {
  return kernel == AttentionKernel::kRanges || kernel == AttentionKernel::kLayers;
}
template <>
struct EnumTable<AttentionKernel> {
  static constexpr const auto& value = kAttentionKernelNames;
};

// How kLayers goes.
struct LayerOptions {
  bool recompute = false;  // keeps the inputs of each layer, computes the rest again going backward
  torch::ScalarType factors = torch::kFloat32;  // of the products (product.h)
};

// What every layer of a stack needs of a mask, prepared once per forward pass.
class AttentionMask {
 public:
  AttentionMask() = default;  // everything may be attended to
  // `allowed`: bool, broadcastable to [B, 1, T, S].
  explicit AttentionMask(const torch::Tensor& allowed,
                         AttentionKernel kernel = AttentionKernel::kExact);
  explicit AttentionMask(AttentionRanges ranges, AttentionKernel kernel = AttentionKernel::kRanges,
                         const LayerOptions& layers = {})
      : kernel_(kernel), ranges_(std::move(ranges)), layers_(layers) {}

  explicit AttentionMask(SegmentOffsets segments)
      : kernel_(AttentionKernel::kSegments), segments_(std::move(segments)) {}

  AttentionKernel kernel() const { return kernel_; }
  bool allows_everything() const {
    return !takes_ranges(kernel_) && kernel_ != AttentionKernel::kSegments && !blocked_.defined() &&
           !bias_.defined();
  }

  // kExact: bool, true = may not attend
  const torch::Tensor& blocked() const { return blocked_; }
  // kFused: float32, 0 or -1e30; and bool [.., T, 1], true in a row that may attend to nothing
  const torch::Tensor& bias() const { return bias_; }
  const torch::Tensor& no_key() const { return no_key_; }
  const AttentionRanges& ranges() const { return ranges_; }     // kRanges, kLayers
  const LayerOptions& layers() const { return layers_; }        // kLayers
  const SegmentOffsets& segments() const { return segments_; }  // kSegments

 private:
  AttentionKernel kernel_ = AttentionKernel::kExact;
  torch::Tensor blocked_;
  torch::Tensor bias_;
  torch::Tensor no_key_;
  AttentionRanges ranges_;
  LayerOptions layers_;
  SegmentOffsets segments_;
};

}  // namespace needle
