#include "needle/model/product.h"

#include "needle/core/error.h"
#include "needle/model/blas.h"

namespace needle {
namespace {

// What the BLAS takes: rows, or the transpose of rows, with their values side by side and the rows
// no nearer than they are long (LibTorch leaves the stride of a single row open). Else stride 0.
RoundedMatrix matrix_of(const torch::Tensor& factor) {
  const bool transposed = factor.stride(1) != 1;
  const int row = transposed ? 1 : 0;
  const auto length = factor.size(1 - row);
  const auto stride = factor.size(row) == 1 ? length : factor.stride(row);
  return {.data = reinterpret_cast<const std::uint16_t*>(factor.const_data_ptr<at::BFloat16>()),
          .stride = factor.stride(1 - row) == 1 && stride >= length ? stride : 0,
          .transposed = transposed};
}

bool takes_rounded(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& result) {
  return has_rounded_products() && result.device().is_cpu() && matrix_of(a).stride > 0 &&
         matrix_of(b).stride > 0;
}

}  // namespace

torch::Tensor as_factor(const torch::Tensor& matrix, torch::ScalarType dtype) {
  return matrix.to(dtype);
}

torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b, double alpha) {
  if (a.scalar_type() == torch::kFloat32 && alpha == 1.0) {
    return a.mm(b);
  }
  auto result = torch::empty({a.size(0), b.size(1)}, a.options().dtype(torch::kFloat32));
  product_into(result, a, b, alpha, 0.0);
  return result;
}

void product_into(torch::Tensor result, const torch::Tensor& a, const torch::Tensor& b,
                  double alpha, double beta) {
  NEEDLE_CHECK(result.is_contiguous() && result.scalar_type() == torch::kFloat32,
               "products go into contiguous float32 tensors");
  if (a.scalar_type() == torch::kFloat32) {
    result.addmm_(a, b, beta, alpha);
    return;
  }
  NEEDLE_CHECK(a.scalar_type() == torch::kBFloat16 && b.scalar_type() == torch::kBFloat16 &&
                   a.size(1) == b.size(0) && result.size(0) == a.size(0) &&
                   result.size(1) == b.size(1),
               "a product of {} [{}, {}] and {} [{}, {}]", c10::toString(a.scalar_type()),
               a.size(0), a.size(1), c10::toString(b.scalar_type()), b.size(0), b.size(1));
  if (takes_rounded(a, b, result)) {
    multiply({result.size(0), result.size(1), a.size(1)}, static_cast<float>(alpha), matrix_of(a),
             matrix_of(b), static_cast<float>(beta), result.data_ptr<float>(), result.size(1));
    return;
  }
  result.addmm_(a.to(torch::kFloat32), b.to(torch::kFloat32), beta, alpha);
}

}  // namespace needle
