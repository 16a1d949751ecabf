// One matrix product over plain memory, for loops that run on several threads at once and
// take a product each: a tensor operation there would cost more than a small product.
#pragma once

#include <cstdint>

namespace needle {

struct Matrix {
  const float* data = nullptr;
  std::int64_t stride = 0;  // values from one row to the next
  bool transposed = false;  // taken as its transpose
};

// result = alpha * a b + beta * result; a counts as [rows, inner], b as [inner, columns], result is
// [rows, columns] with `stride` values a row. beta 0 does not read `result`. LibTorch's BLAS where
// it lets us in, else a tensor operation. Safe from several threads.
struct ProductShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
};
void multiply(const ProductShape& shape, float alpha, const Matrix& a, const Matrix& b, float beta,
              float* result, std::int64_t stride);

// The same of bfloat16 factors (their 16 bits), with sums in float32. Only where
// has_rounded_products(): LibTorch's BLAS has such a product (MKL) and this CPU is faster with it
// (core/cpu_features.h).
struct RoundedMatrix {
  const std::uint16_t* data = nullptr;
  std::int64_t stride = 0;
  bool transposed = false;
};
bool has_rounded_products();
void multiply(const ProductShape& shape, float alpha, const RoundedMatrix& a,
              const RoundedMatrix& b, float beta, float* result, std::int64_t stride);

}  // namespace needle
