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

// A row's codes, and those of what they leave over.
void quantize_twice(const Kernels& kernels, const float* x, std::int64_t in, const Int8Rows& first,
                    const Int8Rows& second) noexcept {
  float rest[kMaxInt4Inputs];
  kernels.quantize({x, 1, in}, in, first);
  for (std::int64_t i = 0; i < in; ++i) {
    rest[i] = x[i] - *first.scales * static_cast<float>(first.codes[i]);
  }
  kernels.quantize({rest, 1, in}, in, second);
}

// The outputs from a block on.
Int4Matrix from_block(const Int4Matrix& matrix, std::int64_t block) {
  const std::int64_t groups = (matrix.in + kPanelGroup - 1) / kPanelGroup;
  return {.in = matrix.in,
          .out = matrix.out - block * kPanelWidth,
          .codes = matrix.codes + block * groups * kPanelGroup * kPanelWidth / 2,
          .steps = matrix.steps + block * groups * kPanelWidth,
          .units = matrix.units + 2 * block * kPanelWidth};
}

}  // namespace

Int8Buffer::Int8Buffer(Numerics numerics, std::int64_t rows, std::int64_t width)
    : parts_(numerics == Numerics::kInt16 ? 2 : 1) {
  const std::int64_t groups = (width + kPanelGroup - 1) / kPanelGroup;
  rows *= parts_;
  codes_ = AlignedBuffer<std::int8_t>(static_cast<std::size_t>(rows * groups * kPanelGroup));
  scales_ = AlignedBuffer<float>(static_cast<std::size_t>(rows));
  offsets_ = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(rows * groups));
}

ConstInt8Rows Int8Buffer::quantize(const Machine& machine, ConstRows x, std::int64_t in) {
  const std::int64_t groups = (in + kPanelGroup - 1) / kPanelGroup;
  const auto room = [&](std::int64_t row) {
    return Int8Rows{.codes = codes_.data() + row * groups * kPanelGroup,
                    .scales = scales_.data() + row,
                    .offsets = offsets_.data() + row * groups};
  };
  machine.split(x.count, in * kQuantizeWork * parts_, [&](std::int64_t begin, std::int64_t end) {
    if (parts_ == 1) {
      machine.kernels->quantize({x.data + begin * x.stride, end - begin, x.stride}, in,
                                room(begin));
      return;
    }
    for (std::int64_t row = begin; row < end; ++row) {
      quantize_twice(*machine.kernels, x.data + row * x.stride, in, room(2 * row),
                     room(2 * row + 1));
    }
  });
  return {.codes = codes_.data(),
          .scales = scales_.data(),
          .offsets = offsets_.data(),
          .count = x.count * parts_};
}

Activations prepare(const Machine& machine, const Model& model, ConstRows x, std::int64_t in,
                    Int8Buffer& buffer) {
  if (model.numerics == Numerics::kFloat) {
    return {.x = x, .in = in};
  }
  return {.x = x, .in = in, .codes = buffer.quantize(machine, x, in)};
}

Activations part_of(const Activations& rows, std::int64_t first, std::int64_t count) {
  Activations part = rows;
  part.x.data += first * rows.x.stride;
  part.x.count = count;
  if (rows.codes.codes != nullptr) {
    const std::int64_t groups = (rows.in + kPanelGroup - 1) / kPanelGroup;
    const std::int64_t parts = rows.codes.count / rows.x.count;
    part.codes = {.codes = rows.codes.codes + first * parts * groups * kPanelGroup,
                  .scales = rows.codes.scales + first * parts,
                  .offsets = rows.codes.offsets + first * parts * groups,
                  .count = count * parts};
  }
  return part;
}

// Both parts of a row are rows to the kernels: a weight is read once for them.
void multiply_int4(const Kernels& kernels, const Int4Matrix& matrix, const Activations& x, Rows y,
                   std::int64_t begin, std::int64_t end) noexcept {
  if (x.codes.count == x.x.count) {
    kernels.multiply_int4(matrix, x.codes, y, begin, end);
    return;
  }
  constexpr std::int64_t kRows = 48;
  constexpr std::int64_t kBlocks = 8;
  constexpr std::int64_t kWidth = kBlocks * kPanelWidth;
  alignas(64) float both[2 * kRows * kWidth];
  for (std::int64_t row = 0; row < x.x.count; row += kRows) {
    const Activations rows = part_of(x, row, std::min(kRows, x.x.count - row));
    for (std::int64_t block = begin; block < end; block += kBlocks) {
      const Int4Matrix part = from_block(matrix, block);
      kernels.multiply_int4(part, rows.codes, {both, rows.codes.count, kWidth}, 0,
                            std::min(kBlocks, end - block));
      const std::int64_t width = std::min({kWidth, (end - block) * kPanelWidth, part.out});
      for (std::int64_t r = 0; r < rows.x.count; ++r) {
        const float* const sums = both + 2 * r * kWidth;
        float* const to = y.data + (row + r) * y.stride + block * kPanelWidth;
        for (std::int64_t i = 0; i < width; ++i) {
          to[i] = sums[i] + sums[kWidth + i];
        }
      }
    }
  }
}

void multiply(const Machine& machine, const Matrix& matrix, const Activations& x, Rows y) {
  if (matrix.is_int4()) {
    const Int4Matrix& w = matrix.int4();
    machine.split(padded(w.out) / kPanelWidth, w.in * kPanelWidth * x.codes.count / kInt8Gain,
                  [&](std::int64_t begin, std::int64_t end) {
                    multiply_int4(*machine.kernels, w, x, y, begin, end);
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
