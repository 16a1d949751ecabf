#include "needle/runtime/layers.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace needle::runtime {
namespace {

constexpr std::int64_t kQuantizeWork = 4;  // of one float, for Machine::split
constexpr std::int64_t kInt8Gain = 8;      // integer products in the time of a float's

void mask_scores(KeyMask mask, float* scores) {
  for (std::size_t key = 0; key < mask.size(); ++key) {
    // The lowest float, not minus infinity: a row without any allowed key becomes uniform.
    scores[key] = mask[key] != 0 ? scores[key] : std::numeric_limits<float>::lowest();
  }
}

}  // namespace

Int8Buffer::Int8Buffer(Numerics numerics, std::int64_t rows, std::int64_t width) {
  const std::int64_t groups = (width + kPanelGroup - 1) / kPanelGroup;
  rows *= numerics == Numerics::kInt16 || numerics == Numerics::kMixed ? 2 : 1;
  codes_ = AlignedBuffer<std::int8_t>(static_cast<std::size_t>(rows * groups * kPanelGroup));
  scales_ = AlignedBuffer<float>(static_cast<std::size_t>(rows));
  offsets_ = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(rows * groups));
}

ConstInt8Rows Int8Buffer::quantize(const Machine& machine, Numerics numerics, ConstRows x,
                                   std::int64_t in) {
  const int paired = numerics == Numerics::kInt16 ? 1 : 0;
  const std::int64_t groups = (in + kPanelGroup - 1) / kPanelGroup;
  machine.split(x.count, in * kQuantizeWork << paired, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t at = begin << paired;
    machine.kernels->quantize({x.data + begin * x.stride, end - begin, x.stride}, in,
                              {.codes = codes_.data() + at * groups * kPanelGroup,
                               .scales = scales_.data() + at,
                               .offsets = offsets_.data() + at * groups,
                               .paired = paired});
  });
  return {.codes = codes_.data(),
          .scales = scales_.data(),
          .offsets = offsets_.data(),
          .count = x.count << paired,
          .paired = paired};
}

Activations prepare(const Machine& machine, Numerics numerics, ConstRows x, std::int64_t in,
                    Int8Buffer& buffer) {
  if (numerics == Numerics::kFloat) {
    return {.x = x, .in = in};
  }
  return {.x = x, .in = in, .codes = buffer.quantize(machine, numerics, x, in)};
}

Activations part_of(const Activations& rows, std::int64_t first, std::int64_t count) {
  Activations part = rows;
  part.x.data += first * rows.x.stride;
  part.x.count = count;
  if (rows.codes.codes != nullptr) {
    const std::int64_t groups = (rows.in + kPanelGroup - 1) / kPanelGroup;
    const int paired = rows.codes.paired;
    const std::int64_t at = first << paired;
    part.codes = {.codes = rows.codes.codes + at * groups * kPanelGroup,
                  .scales = rows.codes.scales + at,
                  .offsets = rows.codes.offsets + at * groups,
                  .count = count << paired,
                  .paired = paired};
  }
  return part;
}

void multiply(const Machine& machine, const Matrix& matrix, const Activations& x, Rows y) {
  if (matrix.is_int4()) {
    const Int4Matrix& w = matrix.int4();
    machine.split(padded(w.out) / kPanelWidth, w.in * kPanelWidth * x.codes.count / kInt8Gain,
                  [&](std::int64_t begin, std::int64_t end) {
                    machine.kernels->multiply_int4(w, x.codes, y, begin, end);
                  });
    return;
  }
  const Panels panels = matrix.panels();
  machine.split(padded(panels.out) / kPanelWidth, panels.in * kPanelWidth * x.x.count,
                [&](std::int64_t begin, std::int64_t end) {
                  machine.kernels->multiply(panels, x.x, y, begin, end);
                });
}

HeadTransform head_transform(std::span<const float> factors, const RopeTable* rope,
                             std::int64_t position, float scale) {
  return {.head_dim = std::ssize(factors),
          .factors = factors.data(),
          .cos = rope == nullptr ? nullptr : rope->cos(position),
          .sin = rope == nullptr ? nullptr : rope->sin(position),
          .scale = scale};
}

void attend_head(const Kernels& kernels, const KvCache& cache, std::int64_t kv_head,
                 std::int64_t count, KeyMask mask, ConstRows q, float* scores, Rows out) noexcept {
  const std::int64_t stride = padded(count);
  const Panels keys = cache.keys(kv_head, count);
  kernels.multiply(keys, q, {scores, q.count, stride}, 0, stride / kPanelWidth);
  for (std::int64_t row = 0; row < q.count; ++row) {
    mask_scores(mask, scores + row * stride);
    kernels.softmax(scores + row * stride, count);
  }
  const Panels values = cache.values(kv_head, count);
  kernels.multiply(values, {scores, q.count, stride}, out, 0, padded(values.out) / kPanelWidth);
}

void attend_kv_head(const Kernels& kernels, const ModelConfig& config, const KvCache& cache,
                    std::int64_t kv_head, std::int64_t count, KeyMask mask, const float* q,
                    float* scores, float* out) noexcept {
  const std::int64_t head_dim = config.head_dim();
  const std::int64_t shared = config.num_heads / config.num_kv_heads;  // query heads a kv head
  const std::int64_t at = kv_head * shared * head_dim;
  attend_head(kernels, cache, kv_head, count, mask, {q + at, shared, head_dim}, scores,
              {out + at, shared, head_dim});
}

void activate(Activation activation, const float* up, std::int64_t count, float* gate) noexcept {
  constexpr float kRootTwoOverPi = 0.7978845608028654f;
  switch (activation) {
    case Activation::kDrelu:
      for (std::int64_t i = 0; i < count; ++i) {
        gate[i] = std::max(gate[i], 0.0f) * std::max(up[i], 0.0f);
      }
      break;
    case Activation::kSwiglu:
      for (std::int64_t i = 0; i < count; ++i) {
        gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
      }
      break;
    case Activation::kGeglu:
      for (std::int64_t i = 0; i < count; ++i) {
        const float g = gate[i];
        const float inner = kRootTwoOverPi * (g + 0.044715f * g * g * g);
        gate[i] = 0.5f * g * (1.0f + std::tanh(inner)) * up[i];
      }
      break;
  }
}

}  // namespace needle::runtime
