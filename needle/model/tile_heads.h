// One key/value head's attention with products of bfloat16 factors on AMX tiles
// (kernels/tile_product.h): scores, softmax and their gradients of one block of queries stay in the
// cache. Sums, softmax and gradients are float32. head_attention.cpp has the float32 form that this
// is held against.
#pragma once

#include <cstdint>
#include <vector>

#include "needle/model/kernels/kernels.h"
#include "needle/model/kernels/tile_product.h"

namespace needle {

// Keys and values of a range, [keys, dim] side by side.
struct TileKeys {
  const float* k = nullptr;
  const float* v = nullptr;
  std::int64_t keys = 0;
  std::int64_t dim = 0;
  float scale = 1.0F;  // of the scores
  bool causal = false;
};

// A query head's rows over that range.
struct TileQueries {
  const float* q = nullptr;  // [queries, dim]
  std::int64_t queries = 0;
  std::int64_t out_stride = 0;  // from a row of `attended` or its gradient to the next
};

struct TileHeadGrads {
  float* q = nullptr;  // written
  float* k = nullptr;  // added to, as v
  float* v = nullptr;
};

// Buffers of one thread. Where has_tile_products().
class TileHeads {
 public:
  explicit TileHeads(const RowKernels& kernels) : kernels_(kernels) {}

  void take_forward(const TileKeys& keys);
  // weights: bfloat16 [queries, keys], for the way back; attended: bfloat16.
  void forward(const TileQueries& queries, std::uint16_t* weights, std::uint16_t* attended);

  void take_backward(const TileKeys& keys);
  void backward(const TileQueries& queries, const std::uint16_t* weights, const float* grad,
                const TileHeadGrads& grads);

 private:
  ScoreBlock block_at(std::int64_t first, std::int64_t queries) const;
  float* room(std::vector<float>& buffer, std::int64_t size);

  const RowKernels& kernels_;
  TileKeys keys_;
  TileLeft left_;
  TileRight turned_k_, straight_k_, turned_v_, straight_v_, right_;
  std::vector<float> scores_, rows_, weights_;
};

}  // namespace needle
