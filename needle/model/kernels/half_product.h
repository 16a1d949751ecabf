// Matrix products in half precision for Newton-Schulz, on CPUs with AVX512-FP16: those multiply
// float16 at twice the rate of float32. Sums run in float16 over 64 terms and go on in float32, so
// a result is about as exact as one of bfloat16 factors with float32 sums. For factors whose values
// are at most 1 in magnitude and whose products stay below 200.
#pragma once

#include <cstdint>
#include <vector>

#include "needle/model/kernels/scaled_product.h"

namespace needle {

bool has_half_products();

// The left factor [rows, inner], in panels of 12 rows.
class HalfLeft {
 public:
  // Grows as needed; a smaller matrix later does not allocate.
  void pack(const float* data, std::int64_t rows, std::int64_t inner);
  const std::uint32_t* panel(std::int64_t index) const;
  std::int64_t inner() const { return inner_; }

 private:
  std::int64_t inner_ = 0;
  std::vector<std::uint32_t> values_;  // [panels][inner][12], each value twice
};

// The right factor [inner, columns], in panels of 64 columns.
class HalfRight {
 public:
  void pack(const float* data, std::int64_t inner, std::int64_t columns);
  // From its transpose, [columns, inner].
  void pack_transposed(const float* data, std::int64_t columns, std::int64_t inner);
  const std::uint16_t* panel(std::int64_t index) const;

 private:
  std::uint16_t* make_room(std::int64_t inner, std::int64_t columns);
  std::int64_t inner_ = 0;
  std::vector<std::uint16_t> values_;  // [panels][inner][64]
};

// `columns` values a row of `result`; blocks are 12 x 64. Only where has_half_products().
void multiply_half(const ScaledProduct& shape, const HalfLeft& left, const HalfRight& right,
                   float* result);

}  // namespace needle
