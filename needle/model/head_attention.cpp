#include "needle/model/head_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "needle/core/error.h"
#include "needle/model/blas.h"
#include "needle/model/kernels/kernels.h"
#include "needle/model/product.h"
#include "needle/model/shared_tasks.h"
#include "needle/model/tile_heads.h"

namespace needle {
namespace {

// Queries of one product: their scores stay in the second-level cache.
constexpr std::int64_t kBlockRows = 128;

struct HeadRange {
  std::int64_t row = 0;
  std::int64_t first_query = 0;
  std::int64_t queries = 0;
  std::int64_t first_key = 0;
  std::int64_t keys = 0;
  std::int64_t weights = 0;  // where the weights of its first head begin
};

struct Problem {
  std::int64_t B, H, K, T, S, D;
  float scale;
  bool causal;
  std::vector<std::vector<HeadRange>> ranges;  // of each batch row
  std::int64_t weight_count = 0;

  std::int64_t group() const { return H / K; }
  std::int64_t most_keys() const {
    std::int64_t most = 1;
    for (const auto& row : ranges) {
      for (const HeadRange& range : row) {
        most = std::max(most, range.keys);
      }
    }
    return most;
  }
};

Problem make_problem(const torch::Tensor& q, const torch::Tensor& k,
                     const AttentionRanges& ranges) {
  Problem problem{.B = q.size(0),
                  .H = q.size(1),
                  .K = k.size(1),
                  .T = q.size(2),
                  .S = k.size(2),
                  .D = q.size(3),
                  .scale = 1.0F / std::sqrt(static_cast<float>(q.size(3))),
                  .causal = ranges.causal,
                  .ranges = {}};
  problem.ranges.resize(static_cast<std::size_t>(problem.B));
  const auto* value = ranges.table.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < ranges.table.size(0); ++i, value += ranges.table.size(1)) {
    problem.ranges[static_cast<std::size_t>(value[0])].push_back(
        {value[0], value[1], value[2], value[3], value[4], problem.weight_count});
    problem.weight_count += problem.H * value[2] * value[4];
  }
  return problem;
}

void check_heads(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
  for (const auto* tensor : {&q, &k, &v}) {
    NEEDLE_CHECK(tensor->dim() == 4 && tensor->is_contiguous() && tensor->device().is_cpu() &&
                     tensor->scalar_type() == torch::kFloat32,
                 "attention by heads takes contiguous float32 heads on the CPU");
  }
  NEEDLE_CHECK(q.size(1) % k.size(1) == 0, "{} query heads for {} kv heads", q.size(1), k.size(1));
}

// One query head over one range. Pointers at the range's first query, key and value.
struct HeadTask {
  const Problem& problem;
  const HeadRange& range;
  const float* q;
  const float* k;
  const float* v;

  std::int64_t blocks_end() const { return range.queries; }
  ScoreBlock block(std::int64_t first) const {
    return {.rows = std::min(kBlockRows, range.queries - first),
            .keys = range.keys,
            .causal = problem.causal,
            .first_row = first};
  }
};

void forward_head(const HeadTask& task, const RowKernels& kernels, float* weights, float* out) {
  const std::int64_t H = task.problem.H, D = task.problem.D, keys = task.range.keys;
  const float scale = task.problem.scale;
  for (std::int64_t first = 0; first < task.blocks_end(); first += kBlockRows) {
    const ScoreBlock block = task.block(first);
    float* scores = weights + first * keys;
    multiply({block.rows, keys, D}, scale, {task.q + first * D, D}, {task.k, D, true}, 0.0F, scores,
             keys);
    kernels.softmax(block, scores);
    multiply({block.rows, D, keys}, 1.0F, {scores, keys}, {task.v, D}, 0.0F, out + first * H * D,
             H * D);
  }
}

// A range without keys: everybody sees the mean of the whole row's values.
template <typename Value>
void mean_of_values(const Problem& problem, const HeadRange& range, const float* v, Value* out) {
  std::vector<float> mean(static_cast<std::size_t>(problem.D), 0.0F);
  for (std::int64_t s = 0; s < problem.S; ++s) {
    for (std::int64_t i = 0; i < problem.D; ++i) {
      mean[static_cast<std::size_t>(i)] += v[s * problem.D + i];
    }
  }
  for (std::int64_t t = 0; t < range.queries; ++t) {
    for (std::int64_t i = 0; i < problem.D; ++i) {
      out[t * problem.H * problem.D + i] =
          static_cast<Value>(mean[static_cast<std::size_t>(i)] / static_cast<float>(problem.S));
    }
  }
}

void mean_of_values_backward(const Problem& problem, const HeadRange& range, const float* grad,
                             float* v_grad) {
  std::vector<float> sum(static_cast<std::size_t>(problem.D), 0.0F);
  for (std::int64_t t = 0; t < range.queries; ++t) {
    for (std::int64_t i = 0; i < problem.D; ++i) {
      sum[static_cast<std::size_t>(i)] += grad[t * problem.H * problem.D + i];
    }
  }
  for (std::int64_t s = 0; s < problem.S; ++s) {
    for (std::int64_t i = 0; i < problem.D; ++i) {
      v_grad[s * problem.D + i] += sum[static_cast<std::size_t>(i)] / static_cast<float>(problem.S);
    }
  }
}

void backward_head(const HeadTask& task, const RowKernels& kernels, const float* weights,
                   const float* grad, const TileHeadGrads& grads, float* scratch) {
  const std::int64_t H = task.problem.H, D = task.problem.D, keys = task.range.keys;
  const float scale = task.problem.scale;
  for (std::int64_t first = 0; first < task.blocks_end(); first += kBlockRows) {
    const ScoreBlock block = task.block(first);
    const float* p = weights + first * keys;
    const Matrix out_grad{grad + first * H * D, H * D};
    multiply({keys, D, block.rows}, 1.0F, {p, keys, true}, out_grad, 1.0F, grads.v, D);
    multiply({block.rows, keys, D}, 1.0F, out_grad, {task.v, D, true}, 0.0F, scratch, keys);
    kernels.softmax_backward(block, p, scratch);
    multiply({block.rows, D, keys}, scale, {scratch, keys}, {task.k, D}, 0.0F, grads.q + first * D,
             D);
    multiply({keys, D, block.rows}, scale, {scratch, keys, true}, {task.q + first * D, D}, 1.0F,
             grads.k, D);
  }
}

std::uint16_t* bits_of(at::BFloat16* values) { return reinterpret_cast<std::uint16_t*>(values); }
const std::uint16_t* bits_of(const at::BFloat16* values) {
  return reinterpret_cast<const std::uint16_t*>(values);
}

TileKeys keys_of(const Problem& problem, const HeadRange& range, const float* k, const float* v) {
  return {.k = k + range.first_key * problem.D,
          .v = v + range.first_key * problem.D,
          .keys = range.keys,
          .dim = problem.D,
          .scale = problem.scale,
          .causal = problem.causal};
}

TileQueries queries_of(const Problem& problem, const HeadRange& range, const float* q) {
  return {.q = q, .queries = range.queries, .out_stride = problem.H * problem.D};
}

// The key/value heads of all rows, each with its query heads by one thread.
void tiled_forward(const Problem& problem, const torch::Tensor& q, const torch::Tensor& k,
                   const torch::Tensor& v, const HeadAttention& result) {
  const std::int64_t H = problem.H, K = problem.K, T = problem.T, S = problem.S, D = problem.D;
  const auto* q_data = q.const_data_ptr<float>();
  const auto* k_data = k.const_data_ptr<float>();
  const auto* v_data = v.const_data_ptr<float>();
  auto* out = result.attended.data_ptr<at::BFloat16>();
  auto* weights = result.weights.data_ptr<at::BFloat16>();
  share_tasks(problem.B * K, [&](std::int64_t kv) {
    thread_local TileHeads heads(row_kernels());
    const std::int64_t b = kv / K, first_head = kv % K * problem.group();
    for (const HeadRange& range : problem.ranges[static_cast<std::size_t>(b)]) {
      if (range.keys > 0) {
        heads.take_forward(keys_of(problem, range, k_data + kv * S * D, v_data + kv * S * D));
      }
      for (std::int64_t h = first_head; h < first_head + problem.group(); ++h) {
        auto* range_out = out + (b * T + range.first_query) * H * D + h * D;
        if (range.keys == 0) {
          mean_of_values(problem, range, v_data + kv * S * D, range_out);
          continue;
        }
        auto* range_weights = weights + range.weights + h * range.queries * range.keys;
        heads.forward(
            queries_of(problem, range, q_data + ((b * H + h) * T + range.first_query) * D),
            bits_of(range_weights), bits_of(range_out));
      }
    }
  });
}

}  // namespace

HeadAttention head_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const AttentionRanges& ranges, torch::ScalarType factors) {
  check_heads(q, k, v);
  const Problem problem = make_problem(q, k, ranges);
  const std::int64_t B = problem.B, H = problem.H, K = problem.K, T = problem.T, S = problem.S,
                     D = problem.D;
  if (factors == torch::kBFloat16 && has_tile_products()) {
    const auto options = q.options().dtype(torch::kBFloat16);
    HeadAttention rounded{.attended = torch::empty({B, T, H * D}, options),
                          .weights = torch::empty({problem.weight_count}, options)};
    tiled_forward(problem, q, k, v, rounded);
    return rounded;
  }
  HeadAttention result{.attended = torch::empty({B, T, H * D}, q.options()),
                       .weights = torch::empty({problem.weight_count}, q.options())};
  const RowKernels& kernels = row_kernels();
  const auto* q_data = q.const_data_ptr<float>();
  const auto* k_data = k.const_data_ptr<float>();
  const auto* v_data = v.const_data_ptr<float>();
  auto* out = result.attended.data_ptr<float>();
  auto* weights = result.weights.data_ptr<float>();
  share_tasks(B * H, [&](std::int64_t task) {
    const std::int64_t b = task / H, h = task % H, kv = b * K + h / problem.group();
    for (const HeadRange& range : problem.ranges[static_cast<std::size_t>(b)]) {
      auto* range_out = out + (b * T + range.first_query) * H * D + h * D;
      if (range.keys == 0) {
        mean_of_values(problem, range, v_data + kv * S * D, range_out);
        continue;
      }
      const HeadTask head{problem, range, q_data + (task * T + range.first_query) * D,
                          k_data + (kv * S + range.first_key) * D,
                          v_data + (kv * S + range.first_key) * D};
      forward_head(head, kernels, weights + range.weights + h * range.queries * range.keys,
                   range_out);
    }
  });
  result.attended = as_factor(result.attended, factors);
  return result;
}

HeadAttentionGrad head_attention_backward(const torch::Tensor& attended_grad,
                                          const torch::Tensor& weights, const torch::Tensor& q,
                                          const torch::Tensor& k, const torch::Tensor& v,
                                          const AttentionRanges& ranges) {
  check_heads(q, k, v);
  const Problem problem = make_problem(q, k, ranges);
  const std::int64_t B = problem.B, H = problem.H, K = problem.K, T = problem.T, S = problem.S,
                     D = problem.D;
  HeadAttentionGrad result{// every query is in one range
                           .q = torch::empty_like(q),
                           .k = torch::zeros_like(k),
                           .v = torch::zeros_like(v)};
  const bool tiled = weights.scalar_type() == torch::kBFloat16;
  const RowKernels& kernels = row_kernels();
  const auto* q_data = q.const_data_ptr<float>();
  const auto* k_data = k.const_data_ptr<float>();
  const auto* v_data = v.const_data_ptr<float>();
  const auto* grad = attended_grad.const_data_ptr<float>();
  auto* q_grad = result.q.data_ptr<float>();
  auto* k_grad = result.k.data_ptr<float>();
  auto* v_grad = result.v.data_ptr<float>();
  const std::int64_t most_keys = problem.most_keys();
  // A key/value head's gradient is the sum over its query heads and ranges: one thread takes all.
  share_tasks(B * K, [&](std::int64_t kv) {
    thread_local TileHeads heads(row_kernels());
    thread_local std::vector<float> scratch;
    scratch.resize(tiled ? 0 : static_cast<std::size_t>(kBlockRows * most_keys));
    const std::int64_t b = kv / K, first_head = kv % K * problem.group();
    for (const HeadRange& range : problem.ranges[static_cast<std::size_t>(b)]) {
      if (tiled && range.keys > 0) {
        heads.take_backward(keys_of(problem, range, k_data + kv * S * D, v_data + kv * S * D));
      }
      for (std::int64_t h = first_head; h < first_head + problem.group(); ++h) {
        const auto* range_grad = grad + (b * T + range.first_query) * H * D + h * D;
        const std::int64_t query = ((b * H + h) * T + range.first_query) * D;
        if (range.keys == 0) {
          std::fill_n(q_grad + query, range.queries * D, 0.0F);
          mean_of_values_backward(problem, range, range_grad, v_grad + kv * S * D);
          continue;
        }
        const std::int64_t key = (kv * S + range.first_key) * D;
        const std::int64_t place = range.weights + h * range.queries * range.keys;
        const TileHeadGrads grads{q_grad + query, k_grad + key, v_grad + key};
        if (tiled) {
          heads.backward(queries_of(problem, range, q_data + query),
                         bits_of(weights.const_data_ptr<at::BFloat16>()) + place, range_grad,
                         grads);
        } else {
          backward_head({problem, range, q_data + query, k_data + key, v_data + key}, kernels,
                        weights.const_data_ptr<float>() + place, range_grad, grads, scratch.data());
        }
      }
    }
  });
  return result;
}

}  // namespace needle
