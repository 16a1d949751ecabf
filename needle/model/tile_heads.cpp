#include "needle/model/tile_heads.h"

#include <algorithm>

namespace needle {
namespace {

constexpr std::int64_t kBlockRows = 128;  // their scores stay in the second-level cache

}  // namespace

ScoreBlock TileHeads::block_at(std::int64_t first, std::int64_t queries) const {
  return {.rows = std::min(kBlockRows, queries - first),
          .keys = keys_.keys,
          .causal = keys_.causal,
          .first_row = first,
          .scale = keys_.scale};
}

float* TileHeads::room(std::vector<float>& buffer, std::int64_t size) {
  if (buffer.size() < static_cast<std::size_t>(size)) {
    buffer.resize(static_cast<std::size_t>(size));
  }
  return buffer.data();
}

void TileHeads::take_forward(const TileKeys& keys) {
  keys_ = keys;
  turned_k_.pack({.wide = keys.k, .stride = keys.dim, .transposed = true}, keys.dim, keys.keys);
  straight_v_.pack({.wide = keys.v, .stride = keys.dim}, keys.keys, keys.dim);
}

void TileHeads::forward(const TileQueries& queries, std::uint16_t* weights,
                        std::uint16_t* attended) {
  const std::int64_t keys = keys_.keys, dim = keys_.dim;
  float* scores = room(scores_, kBlockRows * keys);
  float* out = room(rows_, kBlockRows * dim);
  for (std::int64_t first = 0; first < queries.queries; first += kBlockRows) {
    const ScoreBlock block = block_at(first, queries.queries);
    left_.pack({.wide = queries.q + first * dim, .stride = dim}, block.rows, dim);
    multiply_tiles({.rows = block.rows, .columns = keys}, left_, turned_k_, scores, keys);
    kernels_.softmax(block, scores);
    std::uint16_t* kept = weights + first * keys;
    round_values(scores, block.rows * keys, kept);
    left_.pack({.rounded = kept, .stride = keys}, block.rows, keys);
    multiply_tiles({.rows = block.rows, .columns = dim}, left_, straight_v_, out, dim);
    for (std::int64_t row = 0; row < block.rows; ++row) {
      round_values(out + row * dim, dim, attended + (first + row) * queries.out_stride);
    }
  }
}

void TileHeads::take_backward(const TileKeys& keys) {
  keys_ = keys;
  straight_k_.pack({.wide = keys.k, .stride = keys.dim}, keys.keys, keys.dim);
  turned_v_.pack({.wide = keys.v, .stride = keys.dim, .transposed = true}, keys.dim, keys.keys);
}

void TileHeads::backward(const TileQueries& queries, const std::uint16_t* weights,
                         const float* grad, const TileHeadGrads& grads) {
  const std::int64_t keys = keys_.keys, dim = keys_.dim;
  float* scores_grad = room(scores_, kBlockRows * keys);
  float* wide_weights = room(weights_, kBlockRows * keys);
  for (std::int64_t first = 0; first < queries.queries; first += kBlockRows) {
    const ScoreBlock block = block_at(first, queries.queries);
    const std::uint16_t* kept = weights + first * keys;
    const TileSource out_grad{.wide = grad + first * queries.out_stride,
                              .stride = queries.out_stride};
    left_.pack({.rounded = kept, .stride = keys, .transposed = true}, keys, block.rows);
    right_.pack(out_grad, block.rows, dim);
    multiply_tiles({.rows = keys, .columns = dim, .beta = 1.0F}, left_, right_, grads.v, dim);

    left_.pack(out_grad, block.rows, dim);
    multiply_tiles({.rows = block.rows, .columns = keys}, left_, turned_v_, scores_grad, keys);
    widen_values(kept, block.rows * keys, wide_weights);
    kernels_.softmax_backward(block, wide_weights, scores_grad);

    left_.pack({.wide = scores_grad, .stride = keys}, block.rows, keys);
    multiply_tiles({.rows = block.rows, .columns = dim}, left_, straight_k_, grads.q + first * dim,
                   dim);
    left_.pack({.wide = scores_grad, .stride = keys, .transposed = true}, keys, block.rows);
    right_.pack({.wide = queries.q + first * dim, .stride = dim}, block.rows, dim);
    multiply_tiles({.rows = keys, .columns = dim, .beta = 1.0F}, left_, right_, grads.k, dim);
  }
}

}  // namespace needle
