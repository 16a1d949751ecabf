#include "needle/runtime/layers.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace needle::runtime {
namespace {

constexpr float kNormEpsilon = 1e-6f;
constexpr std::int64_t kQuantizeWork = 4;  // of one float, for Machine::split
constexpr std::int64_t kInt8Gain = 8;      // integer products in the time of a float's
constexpr std::int64_t kQueryRows = 32;    // query positions of one head scored at a time

// Eight sums side by side: one would wait for itself at every addition.
float sum_of_squares(const float* x, std::size_t count) {
  std::array<float, 8> sums{};
  std::size_t i = 0;
  for (; i + sums.size() <= count; i += sums.size()) {
    for (std::size_t lane = 0; lane < sums.size(); ++lane) {
      sums[lane] += x[i + lane] * x[i + lane];
    }
  }
  float total = 0;
  for (; i < count; ++i) {
    total += x[i] * x[i];
  }
  for (const float sum : sums) {
    total += sum;
  }
  return total;
}

void mask_scores(KeyMask mask, float* scores) {
  for (std::size_t key = 0; key < mask.size(); ++key) {
    // The lowest float, not minus infinity: a row without any allowed key becomes uniform.
    scores[key] = mask[key] != 0 ? scores[key] : std::numeric_limits<float>::lowest();
  }
}

// softmax(q K^T) V for rows of queries that share a key/value head.
void attend_head(const Kernels& kernels, const KvCache& cache, std::int64_t kv_head,
                 std::int64_t count, KeyMask mask, ConstRows q, float* scores, Rows out) {
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

}  // namespace

Int8Buffer::Int8Buffer(std::int64_t rows, std::int64_t width) {
  const std::int64_t groups = (width + kPanelGroup - 1) / kPanelGroup;
  codes_ = AlignedBuffer<std::int8_t>(static_cast<std::size_t>(rows * groups * kPanelGroup));
  scales_ = AlignedBuffer<float>(static_cast<std::size_t>(rows));
  offsets_ = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(rows * groups));
}

ConstInt8Rows Int8Buffer::quantize(const Machine& machine, ConstRows x, std::int64_t in) {
  const std::int64_t groups = (in + kPanelGroup - 1) / kPanelGroup;
  machine.split(x.count, in * kQuantizeWork, [&](std::int64_t begin, std::int64_t end) {
    machine.kernels->quantize({x.data + begin * x.stride, end - begin, x.stride}, in,
                              {.codes = codes_.data() + begin * groups * kPanelGroup,
                               .scales = scales_.data() + begin,
                               .offsets = offsets_.data() + begin * groups});
  });
  return {.codes = codes_.data(),
          .scales = scales_.data(),
          .offsets = offsets_.data(),
          .count = x.count};
}

Activations prepare(const Machine& machine, const Model& model, ConstRows x, std::int64_t in,
                    Int8Buffer& buffer) {
  if (model.numerics == Numerics::kFloat) {
    return {.x = x};
  }
  return {.x = x, .codes = buffer.quantize(machine, x, in)};
}

void multiply(const Machine& machine, const Matrix& matrix, const Activations& x, Rows y) {
  if (matrix.is_int4()) {
    const Int4Matrix& w = matrix.int4();
    machine.split(padded(w.out) / kPanelWidth, w.in * kPanelWidth * x.x.count / kInt8Gain,
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

void rms_norm(std::span<const float> factors, const float* x, float* y) noexcept {
  const float mean = sum_of_squares(x, factors.size()) / static_cast<float>(factors.size());
  const float root = std::sqrt(mean + kNormEpsilon);
  for (std::size_t i = 0; i < factors.size(); ++i) {
    y[i] = factors[i] * (x[i] / root);
  }
}

RopeTable::RopeTable(const ModelConfig& config, std::int64_t positions)
    : half_(config.head_dim() / 2) {
  const auto size = static_cast<std::size_t>(positions * half_);
  cos_.resize(size);
  sin_.resize(size);
  for (std::int64_t i = 0; i < half_; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(2 * half_);
    const auto frequency = static_cast<float>(std::pow(config.rope_theta, exponent));
    for (std::int64_t position = 0; position < positions; ++position) {
      // The angle is rounded to float32 as in the reference; its cosine is then taken exactly.
      const float angle = static_cast<float>(position) * frequency;
      cos_[static_cast<std::size_t>(position * half_ + i)] = std::cos(angle);
      sin_[static_cast<std::size_t>(position * half_ + i)] = std::sin(angle);
    }
  }
}

void RopeTable::rotate(std::int64_t position, float* x) const noexcept {
  const float* const cos = cos_.data() + position * half_;
  const float* const sin = sin_.data() + position * half_;
  for (std::int64_t i = 0; i < half_; ++i) {
    const float first = x[i];
    const float second = x[half_ + i];
    x[i] = first * cos[i] - second * sin[i];
    x[half_ + i] = second * cos[i] + first * sin[i];
  }
}

void transform_heads(const HeadTransform& transform, std::int64_t heads, Rows rows) noexcept {
  const auto head_dim = static_cast<std::int64_t>(transform.norm.size());
  for (std::int64_t row = 0; row < rows.count; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      float* const x = rows.data + row * rows.stride + head * head_dim;
      rms_norm(transform.norm, x, x);
      if (transform.rope != nullptr) {
        transform.rope->rotate(transform.first_position + row, x);
      }
      if (transform.scale != 1) {
        std::transform(x, x + head_dim, x, [&](float value) { return value * transform.scale; });
      }
    }
  }
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

void attend_rows(const Machine& machine, const ModelConfig& config, const KvCache& cache,
                 std::int64_t count, KeyMask mask, ConstRows q, Rows out) {
  const std::int64_t head_dim = config.head_dim();
  const std::int64_t shared = config.num_heads / config.num_kv_heads;
  const std::int64_t chunks = (q.count + kQueryRows - 1) / kQueryRows;
  machine.split(
      config.num_heads * chunks, 2 * kQueryRows * count * head_dim,
      [&](std::int64_t begin, std::int64_t end) {
        AlignedBuffer<float> scores(static_cast<std::size_t>(kQueryRows * padded(count)));
        for (std::int64_t unit = begin; unit < end; ++unit) {
          const std::int64_t head = unit / chunks;
          const std::int64_t first = unit % chunks * kQueryRows;
          const std::int64_t rows = std::min(kQueryRows, q.count - first);
          attend_head(*machine.kernels, cache, head / shared, count, mask,
                      {q.data + first * q.stride + head * head_dim, rows, q.stride}, scores.data(),
                      {out.data + first * out.stride + head * head_dim, rows, out.stride});
        }
      });
}

void add_gated(float gate, const float* y, std::int64_t count, float* x) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    x[i] += gate * y[i];
  }
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
