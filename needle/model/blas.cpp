#include "needle/model/blas.h"

#include <torch/torch.h>

#include "needle/core/cpu_features.h"

// The Fortran BLAS inside LibTorch's library (MKL or OpenBLAS), column by column. Weak: a LibTorch
// that hides it is no error.
extern "C" __attribute__((weak)) void sgemm_(const char* transpose_a, const char* transpose_b,
                                             const int* rows, const int* columns, const int* inner,
                                             const float* alpha, const float* a,
                                             const int* stride_a, const float* b,
                                             const int* stride_b, const float* beta, float* result,
                                             const int* stride_result);
// MKL's alone.
extern "C" __attribute__((weak)) void gemm_bf16bf16f32(const char* transpose_a,
                                                       const char* transpose_b, const int* rows,
                                                       const int* columns, const int* inner,
                                                       const float* alpha, const std::uint16_t* a,
                                                       const int* stride_a, const std::uint16_t* b,
                                                       const int* stride_b, const float* beta,
                                                       float* result, const int* stride_result);

namespace needle {
namespace {

torch::Tensor view_of(const Matrix& matrix, std::int64_t rows, std::int64_t columns) {
  auto* data = const_cast<float*>(matrix.data);  // NOLINT: from_blob has no const form
  return matrix.transposed ? torch::from_blob(data, {rows, columns}, {1, matrix.stride})
                           : torch::from_blob(data, {rows, columns}, {matrix.stride, 1});
}

// Row by row is column by column of the transpose: result^T = b^T a^T.
template <typename Product, typename AnyMatrix>
void call_by_columns(Product* gemm, const ProductShape& shape, float alpha, const AnyMatrix& a,
                     const AnyMatrix& b, float beta, float* result, std::int64_t stride) {
  const int rows = static_cast<int>(shape.rows), columns = static_cast<int>(shape.columns),
            inner = static_cast<int>(shape.inner), stride_a = static_cast<int>(a.stride),
            stride_b = static_cast<int>(b.stride), stride_result = static_cast<int>(stride);
  gemm(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &columns, &rows, &inner, &alpha, b.data,
       &stride_b, a.data, &stride_a, &beta, result, &stride_result);
}

}  // namespace

void multiply(const ProductShape& shape, float alpha, const Matrix& a, const Matrix& b, float beta,
              float* result, std::int64_t stride) {
  if (sgemm_ == nullptr) {
    const at::InferenceMode no_history;
    auto out = torch::from_blob(result, {shape.rows, shape.columns}, {stride, 1});
    const auto product =
        alpha * view_of(a, shape.rows, shape.inner).matmul(view_of(b, shape.inner, shape.columns));
    beta == 0.0F ? out.copy_(product) : out.mul_(beta).add_(product);
    return;
  }
  call_by_columns(sgemm_, shape, alpha, a, b, beta, result, stride);
}

bool has_rounded_products() {
  static const bool has = gemm_bf16bf16f32 != nullptr && has_fast_bfloat16();
  return has;
}

void multiply(const ProductShape& shape, float alpha, const RoundedMatrix& a,
              const RoundedMatrix& b, float beta, float* result, std::int64_t stride) {
  call_by_columns(gemm_bf16bf16f32, shape, alpha, a, b, beta, result, stride);
}

}  // namespace needle
