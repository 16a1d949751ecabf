#include "needle/model/product.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "needle/core/error.h"
#include "needle/model/blas.h"
#include "needle/model/kernels/tile_product.h"
#include "needle/model/shared_tasks.h"

namespace needle {
namespace {

// How a factor lies in memory: rows, or the transpose of rows, with their values side by side and
// the rows no nearer than they are long (LibTorch leaves the stride of a single row open). Else
// stride 0.
struct Layout {
  std::int64_t stride = 0;
  bool transposed = false;
};
Layout layout_of(const torch::Tensor& factor) {
  const bool transposed = factor.stride(1) != 1;
  const int row = transposed ? 1 : 0;
  const auto length = factor.size(1 - row);
  const auto stride = factor.size(row) == 1 ? length : factor.stride(row);
  return {.stride = factor.stride(1 - row) == 1 && stride >= length ? stride : 0,
          .transposed = transposed};
}

const std::uint16_t* bits_of(const torch::Tensor& factor) {
  return reinterpret_cast<const std::uint16_t*>(factor.const_data_ptr<at::BFloat16>());
}

RoundedMatrix matrix_of(const torch::Tensor& factor) {
  const Layout layout = layout_of(factor);
  return {.data = bits_of(factor), .stride = layout.stride, .transposed = layout.transposed};
}

TileSource source_of(const torch::Tensor& factor) {
  const bool wide = factor.scalar_type() == torch::kFloat32;
  const Layout layout = layout_of(factor);
  return {.wide = wide ? factor.const_data_ptr<float>() : nullptr,
          .rounded = wide ? nullptr : bits_of(factor),
          .stride = layout.stride,
          .transposed = layout.transposed};
}

TileSource rows_from(const TileSource& source, std::int64_t row) {
  TileSource part = source;
  const std::int64_t offset = source.transposed ? row : row * source.stride;
  part.wide = source.wide != nullptr ? source.wide + offset : nullptr;
  part.rounded = source.rounded != nullptr ? source.rounded + offset : nullptr;
  return part;
}

// The right factor is packed once by all threads; each packs its own rows of the left one. Packed
// factors stay allocated: 2 bytes a value of the largest.
void multiply_on_tiles(torch::Tensor& result, const torch::Tensor& a, const torch::Tensor& b,
                       const ScaledProduct& scales) {
  constexpr std::int64_t kMostValues = 1 << 17;  // of the left factor at a time, a quarter megabyte
  constexpr std::int64_t kWidth = TileFactor::kWidth;
  const std::int64_t rows = result.size(0), columns = result.size(1), inner = a.size(1);
  const TileSource left_source = source_of(a), right_source = source_of(b);
  thread_local TileRight own_right;
  TileRight& right = own_right;
  right.begin(inner, columns);
  at::parallel_for(0, right.panels(), 4, [&](std::int64_t first, std::int64_t last) {
    right.pack_panels(right_source, columns, first, last);
  });
  const std::int64_t step = kWidth * std::max<std::int64_t>(kMostValues / (inner * kWidth), 1);
  auto* data = result.data_ptr<float>();
  share_tasks((rows + step - 1) / step, [&](std::int64_t task) {
    thread_local TileLeft left;
    const std::int64_t row = task * step;
    ScaledProduct part = scales;
    part.rows = std::min(step, rows - row);
    part.columns = columns;
    left.pack(rows_from(left_source, row), part.rows, inner);
    multiply_tiles(part, left, right, data + row * columns, columns);
  });
}

bool have_layouts(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& result) {
  return result.device().is_cpu() && layout_of(a).stride > 0 && layout_of(b).stride > 0;
}

bool is_factor(const torch::Tensor& matrix, torch::ScalarType dtype) {
  return matrix.scalar_type() == torch::kFloat32 || matrix.scalar_type() == dtype;
}

}  // namespace

torch::Tensor as_factor(const torch::Tensor& matrix, torch::ScalarType dtype) {
  return matrix.to(dtype);
}

torch::Tensor as_passing_factor(const torch::Tensor& matrix, torch::ScalarType dtype) {
  return has_tile_products() && matrix.device().is_cpu() ? matrix : as_factor(matrix, dtype);
}

torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b, torch::ScalarType factors,
                      double alpha) {
  if (factors == torch::kFloat32 && alpha == 1.0) {
    return a.mm(b);
  }
  auto result = torch::empty({a.size(0), b.size(1)}, a.options().dtype(torch::kFloat32));
  product_into(result, a, b, factors, alpha, 0.0);
  return result;
}

void product_into(torch::Tensor result, const torch::Tensor& a, const torch::Tensor& b,
                  torch::ScalarType factors, double alpha, double beta) {
  NEEDLE_CHECK(result.is_contiguous() && result.scalar_type() == torch::kFloat32,
               "products go into contiguous float32 tensors");
  NEEDLE_CHECK((factors == torch::kFloat32 || factors == torch::kBFloat16) &&
                   is_factor(a, factors) && is_factor(b, factors) && a.size(1) == b.size(0) &&
                   result.size(0) == a.size(0) && result.size(1) == b.size(1),
               "a product of {} [{}, {}] and {} [{}, {}]", c10::toString(a.scalar_type()),
               a.size(0), a.size(1), c10::toString(b.scalar_type()), b.size(0), b.size(1));
  if (factors == torch::kFloat32) {
    result.addmm_(a, b, beta, alpha);
    return;
  }
  if (has_tile_products() && have_layouts(a, b, result)) {
    multiply_on_tiles(result, a, b,
                      {.alpha = static_cast<float>(alpha), .beta = static_cast<float>(beta)});
    return;
  }
  const auto left = as_factor(a, factors), right = as_factor(b, factors);
  if (has_rounded_products() && have_layouts(left, right, result)) {
    multiply({result.size(0), result.size(1), a.size(1)}, static_cast<float>(alpha),
             matrix_of(left), matrix_of(right), static_cast<float>(beta), result.data_ptr<float>(),
             result.size(1));
    return;
  }
  result.addmm_(left.to(torch::kFloat32), right.to(torch::kFloat32), beta, alpha);
}

}  // namespace needle
