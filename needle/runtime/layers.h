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
#include "needle/runtime/rope_table.h"

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

  // body(thread, threads) on all threads at once; the body must not throw.
  template <typename Body>
  void team(Body&& body) const {
    if (pool == nullptr || pool->thread_count() == 1) {
      body(std::size_t{0}, std::size_t{1});
    } else {
      pool->run_team(std::cref(body));
    }
  }
  std::size_t thread_count() const { return pool == nullptr ? 1 : pool->thread_count(); }
};

// Room for rows in 8 or 16 bits, made once and used by one multiplication after the other.
class Int8Buffer {
 public:
  Int8Buffer() = default;
  // For rows of a model with these numerics.
  Int8Buffer(Numerics numerics, std::int64_t rows, std::int64_t width);
  // Writes the codes of x [n, in], within the room, split over the machine's threads: a row of
  // codes each, or with kInt16 two: of x, and of what these leave over.
  ConstInt8Rows quantize(const Machine& machine, Numerics numerics, ConstRows x, std::int64_t in);

 private:
  AlignedBuffer<std::int8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::int32_t> offsets_;
};

// The same rows as every matrix that reads them wants them: in integers if the model computes so.
// x: [n, in]; the views must outlive it.
struct Activations {
  ConstRows x;
  std::int64_t in = 0;
  ConstInt8Rows codes{};  // [n] with Numerics::kInt8, [2 n] with kInt16
};
Activations prepare(const Machine& machine, Numerics numerics, ConstRows x, std::int64_t in,
                    Int8Buffer& buffer);

// Rows first .. first + count - 1 of them.
Activations part_of(const Activations& rows, std::int64_t first, std::int64_t count);

// y = W x for every row. x: [n, in], y: [n, out].
void multiply(const Machine& machine, const Matrix& matrix, const Activations& x, Rows y);

// `factors`: [D]. Without a table (cross-attention) heads are only normed and multiplied by
// `scale`.
HeadTransform head_transform(std::span<const float> factors, const RopeTable* rope,
                             std::int64_t position, float scale = 1);

// Which of the keys may be attended to: nothing, all; else one byte a key, 0 = masked.
using KeyMask = std::span<const std::uint8_t>;

// One query position against `count` keys: out = softmax(q K^T) V for the H / K heads that read
// key/ value head `kv_head`. q, already divided by sqrt(D), and out: [H * D], of which those heads'
// parts are read and written. scores: room for H/K rows of padded(count). A query whose keys are
// all masked attends uniformly to all of them.
void attend_kv_head(const Kernels& kernels, const ModelConfig& config, const KvCache& cache,
                    std::int64_t kv_head, std::int64_t count, KeyMask mask, const float* q,
                    float* scores, float* out) noexcept;
// The same for rows of queries of one query head.
void attend_head(const Kernels& kernels, const KvCache& cache, std::int64_t kv_head,
                 std::int64_t count, KeyMask mask, ConstRows q, float* scores, Rows out) noexcept;

constexpr std::int64_t padded(std::int64_t count) {
  return (count + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
}

// gate = act(gate) * up, elementwise.
void activate(Activation activation, const float* up, std::int64_t count, float* gate) noexcept;

}  // namespace needle::runtime
