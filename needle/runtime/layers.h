// The network's equations over rows of float32 (specification, section 1): norm, rotation,
// attention, gated residual, feed-forward. Nothing here allocates.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "needle/core/thread_pool.h"
#include "needle/runtime/kernels/kernels.h"
#include "needle/runtime/kv_cache.h"
#include "needle/runtime/model.h"

namespace needle::runtime {

// What a computation runs on. Results are the same for any number of threads.
struct Machine {
  const Kernels* kernels = nullptr;
  ThreadPool* pool = nullptr;  // nullptr: the calling thread alone

  // body(begin, end) over disjoint parts of [0, count), serially if all of it is little work.
  // `work`: multiplications an item, roughly.
  template <typename Body>
  void split(std::int64_t count, std::int64_t work, Body&& body) const {
    constexpr std::int64_t kWorthAThread = 1 << 17;  // about 4 us; a waiting worker costs 1
    const std::int64_t grain =
        std::max<std::int64_t>(1, kWorthAThread / std::max<std::int64_t>(1, work));
    if (pool == nullptr || pool->thread_count() == 1 || count <= grain) {
      body(std::int64_t{0}, count);
      return;
    }
    const auto chunk = [&body](std::size_t begin, std::size_t end) {
      body(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    };
    // A reference fits into std::function without an allocation.
    pool->parallel_for(static_cast<std::size_t>(count), static_cast<std::size_t>(grain),
                       std::cref(chunk));
  }
};

// Room for rows in 8 bits, made once and used by one multiplication after the other.
class Int8Buffer {
 public:
  Int8Buffer() = default;
  Int8Buffer(std::int64_t rows, std::int64_t width);
  // Writes the codes of x [n, in], within the room, split over the machine's threads.
  ConstInt8Rows quantize(const Machine& machine, ConstRows x, std::int64_t in);

 private:
  AlignedBuffer<std::int8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::int32_t> offsets_;
};

// The same rows as every matrix that reads them wants them: in 8 bits if the model computes so.
// x: [n, in]; the views must outlive it.
struct Activations {
  ConstRows x;
  ConstInt8Rows codes{};  // of a model with Numerics::kInt8
};
Activations prepare(const Machine& machine, const Model& model, ConstRows x, std::int64_t in,
                    Int8Buffer& buffer);

// y = W x for every row. x: [n, in], y: [n, out].
void multiply(const Machine& machine, const Matrix& matrix, const Activations& x, Rows y);

// y = factors * x / sqrt(mean(x^2) + 1e-6); factors: [n], 1 + scale. y may be x.
void rms_norm(std::span<const float> factors, const float* x, float* y) noexcept;

// cos and sin of t * theta^(-2i/D), float32 [positions][D/2].
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, std::int64_t positions);
  // (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin); x: [D], in place.
  void rotate(std::int64_t position, float* x) const noexcept;

 private:
  std::int64_t half_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

// Norms every head of rows [heads * D] and rotates it; without a table (cross-attention) only
// norms. Then multiplies by `scale`.
struct HeadTransform {
  std::span<const float> norm;  // [D]
  const RopeTable* rope = nullptr;
  std::int64_t first_position = 0;
  float scale = 1;
};
void transform_heads(const HeadTransform& transform, std::int64_t heads, Rows rows) noexcept;

// Which of the keys may be attended to: nothing, all; else one byte a key, 0 = masked.
using KeyMask = std::span<const std::uint8_t>;

// One query position against `count` keys: out = softmax(q K^T) V for the H / K heads that read
// key/ value head `kv_head`. q, already divided by sqrt(D), and out: [H * D], of which those heads'
// parts are read and written. scores: room for H/K rows of padded(count). A query whose keys are
// all masked attends uniformly to all of them.
void attend_kv_head(const Kernels& kernels, const ModelConfig& config, const KvCache& cache,
                    std::int64_t kv_head, std::int64_t count, KeyMask mask, const float* q,
                    float* scores, float* out) noexcept;
// The same for all rows of q and all heads. Allocates its scores.
void attend_rows(const Machine& machine, const ModelConfig& config, const KvCache& cache,
                 std::int64_t count, KeyMask mask, ConstRows q, Rows out);

constexpr std::int64_t padded(std::int64_t count) {
  return (count + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
}

// x += gate * y, `count` floats.
void add_gated(float gate, const float* y, std::int64_t count, float* x) noexcept;

// gate = act(gate) * up, elementwise.
void activate(Activation activation, const float* up, std::int64_t count, float* gate) noexcept;

}  // namespace needle::runtime
