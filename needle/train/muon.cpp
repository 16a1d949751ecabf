#include "needle/train/muon.h"

#include <algorithm>
#include <map>
#include <utility>

#include <ATen/Parallel.h>

#include "needle/core/error.h"
#include "needle/model/blas.h"
#include "needle/model/kernels/half_product.h"
#include "needle/model/kernels/kernels.h"
#include "needle/model/kernels/tile_product.h"
#include "needle/model/product.h"
#include "needle/model/shared_tasks.h"
#include "needle/train/device.h"

namespace needle {
namespace {

constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;  // steepest slope at zero in five steps

// x: [n, rows, columns], rows <= columns; x <- a x + (b G + c G G) x with G = x x^T, `steps` times.
torch::Tensor newton_schulz(torch::Tensor x, std::int64_t steps, NewtonSchulzDtype dtype) {
  x = x / (torch::linalg_vector_norm(x, 2, torch::IntArrayRef{1, 2}, /*keepdim=*/true) + 1e-7);
  if (dtype == NewtonSchulzDtype::kBfloat16) {
    x = x.to(torch::kBFloat16);
  }
  for (std::int64_t i = 0; i < steps; ++i) {
    const auto gram = torch::bmm(x, x.mT());                           // [n, rows, rows]
    const auto polynomial = torch::baddbmm(gram, gram, gram, kB, kC);  // b G + c G G
    x = torch::baddbmm(x, polynomial, x, kA, 1.0);
  }
  return x.to(torch::kFloat32);
}

// A square matrix of which the lower blocks are computed and the upper ones copied.
class SymmetricMatrix {
 public:
  explicit SymmetricMatrix(std::int64_t size)
      : size_(size), block_(std::max<std::int64_t>((size / 4 + 15) / 16 * 16, 16)) {
    values_.resize(static_cast<std::size_t>(size * size));
  }

  const float* data() const { return values_.data(); }

  // = alpha a b + beta * itself, a [size, inner], b [inner, size].
  void assign_product(float alpha, const float* a, std::int64_t inner, const Matrix& b,
                      float beta) {
    for (std::int64_t first = 0; first < size_; first += block_) {
      const std::int64_t rows = std::min(block_, size_ - first);
      multiply({rows, first + rows, inner}, alpha, {a + first * inner, inner}, b, beta,
               values_.data() + first * size_, size_);
    }
    mirror();
  }

  // = alpha left right + beta * itself.
  void assign_product(float alpha, const HalfLeft& left, const HalfRight& right, float beta) {
    multiply_half({.rows = size_, .columns = size_, .alpha = alpha, .beta = beta, .lower = true},
                  left, right, values_.data());
    mirror();
  }

  void assign(const SymmetricMatrix& other) { values_ = other.values_; }

 private:
  void mirror() {
    constexpr std::int64_t kTile = 16;
    for (std::int64_t rows = 0; rows < size_; rows += kTile) {
      for (std::int64_t columns = rows; columns < size_; columns += kTile) {
        for (std::int64_t i = rows; i < std::min(rows + kTile, size_); ++i) {
          for (std::int64_t j = std::max(columns, i + 1); j < std::min(columns + kTile, size_);
               ++j) {
            values_[static_cast<std::size_t>(i * size_ + j)] =
                values_[static_cast<std::size_t>(j * size_ + i)];
          }
        }
      }
    }
  }

  std::int64_t size_;
  std::int64_t block_;
  std::vector<float> values_;  // [size, size]
};

// As newton_schulz in float32, each matrix by one thread.
torch::Tensor symmetric_newton_schulz(torch::Tensor x, std::int64_t steps) {
  x = x / (torch::linalg_vector_norm(x, 2, torch::IntArrayRef{1, 2}, /*keepdim=*/true) + 1e-7);
  const std::int64_t rows = x.size(1), columns = x.size(2);
  auto* data = x.data_ptr<float>();
  at::parallel_for(0, x.size(0), 1, [&](std::int64_t first, std::int64_t last) {
    SymmetricMatrix gram(rows), polynomial(rows);
    std::vector<float> old(static_cast<std::size_t>(rows * columns));
    for (std::int64_t n = first; n < last; ++n) {
      float* matrix = data + n * rows * columns;
      for (std::int64_t i = 0; i < steps; ++i) {
        gram.assign_product(1.0F, matrix, columns, {matrix, columns, true}, 0.0F);
        polynomial.assign(gram);
        polynomial.assign_product(static_cast<float>(kC), gram.data(), rows, {gram.data(), rows},
                                  static_cast<float>(kB));
        std::copy(matrix, matrix + rows * columns, old.begin());
        multiply({rows, columns, rows}, 1.0F, {polynomial.data(), rows}, {old.data(), columns},
                 static_cast<float>(kA), matrix, columns);
      }
    }
  });
  return x;
}

// The same with products of float16.
torch::Tensor half_newton_schulz(torch::Tensor x, std::int64_t steps) {
  x = x / (torch::linalg_vector_norm(x, 2, torch::IntArrayRef{1, 2}, /*keepdim=*/true) + 1e-7);
  const std::int64_t rows = x.size(1), columns = x.size(2);
  auto* data = x.data_ptr<float>();
  at::parallel_for(0, x.size(0), 1, [&](std::int64_t first, std::int64_t last) {
    SymmetricMatrix gram(rows), polynomial(rows);
    HalfLeft left;
    HalfRight right;
    for (std::int64_t n = first; n < last; ++n) {
      float* matrix = data + n * rows * columns;
      for (std::int64_t i = 0; i < steps; ++i) {
        left.pack(matrix, rows, columns);
        right.pack_transposed(matrix, rows, columns);
        gram.assign_product(1.0F, left, right, 0.0F);
        left.pack(gram.data(), rows, rows);
        right.pack(gram.data(), rows, rows);
        polynomial.assign(gram);
        polynomial.assign_product(static_cast<float>(kC), left, right, static_cast<float>(kB));
        left.pack(polynomial.data(), rows, rows);
        right.pack(matrix, rows, columns);
        multiply_half(
            {.rows = rows, .columns = columns, .alpha = 1.0F, .beta = static_cast<float>(kA)}, left,
            right, matrix);
      }
    }
  });
  return x;
}

// The same with factors of bfloat16 and sums of float32. No halves of symmetric products: these are
// so fast that what lies between them costs as much.
torch::Tensor rounded_newton_schulz(torch::Tensor x, std::int64_t steps) {
  x = x / (torch::linalg_vector_norm(x, 2, torch::IntArrayRef{1, 2}, /*keepdim=*/true) + 1e-7);
  const auto matrices = x.unbind(0);
  at::parallel_for(0, x.size(0), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t n = first; n < last; ++n) {
      const auto& matrix = matrices[static_cast<std::size_t>(n)];
      for (std::int64_t i = 0; i < steps; ++i) {
        const auto factor = as_factor(matrix, torch::kBFloat16);
        auto polynomial = product(factor, factor.t(), torch::kBFloat16);
        const auto gram = as_factor(polynomial, torch::kBFloat16);
        product_into(polynomial, gram, gram, torch::kBFloat16, kC, kB);
        product_into(matrix, as_factor(polynomial, torch::kBFloat16), factor, torch::kBFloat16, 1.0,
                     kA);
      }
    }
  });
  return x;
}

// Buffers of one thread for the steps below.
struct TileRoom {
  std::vector<float> gram;
  TileLeft left;
  TileRight right;
};

// One matrix, rows <= columns, in place, with products of bfloat16 factors and sums of float32 on
// tiles. Lower halves alone: a step is then four products of half the size.
void tiled_newton_schulz(float* matrix, std::int64_t rows, std::int64_t columns, std::int64_t steps,
                         TileRoom& room) {
  room.gram.resize(static_cast<std::size_t>(rows * rows));
  auto& [gram, left, right] = room;
  const TileSource square{.wide = gram.data(), .stride = rows};
  const TileSource wide{.wide = matrix, .stride = columns};
  for (std::int64_t i = 0; i < steps; ++i) {
    left.pack(wide, rows, columns);
    right.pack({.wide = matrix, .stride = columns, .transposed = true}, columns, rows);
    multiply_tiles({.rows = rows, .columns = rows, .lower = true}, left, right, gram.data(), rows);
    mirror_lower(gram.data(), rows);
    left.pack(square, rows, rows);
    right.pack(square, rows, rows);
    multiply_tiles({.rows = rows,
                    .columns = rows,
                    .alpha = static_cast<float>(kC),
                    .beta = static_cast<float>(kB),
                    .lower = true},
                   left, right, gram.data(), rows);
    mirror_lower(gram.data(), rows);
    left.pack(square, rows, rows);
    right.pack(wide, rows, columns);
    multiply_tiles(
        {.rows = rows, .columns = columns, .alpha = 1.0F, .beta = static_cast<float>(kA)}, left,
        right, matrix, columns);
  }
}

// Each matrix by one thread from its gradient to the end, in its cache.
std::vector<torch::Tensor> tiled_orthogonalize(const std::vector<torch::Tensor>& gradients,
                                               std::int64_t steps) {
  std::vector<torch::Tensor> results(gradients.size());
  share_tasks(static_cast<std::int64_t>(gradients.size()), [&](std::int64_t task) {
    thread_local TileRoom room;
    const torch::NoGradGuard no_grad;
    const auto place = static_cast<std::size_t>(task);
    const auto& gradient = gradients[place];
    const bool tall = gradient.size(0) > gradient.size(1);
    auto x = (tall ? gradient.t() : gradient).contiguous();
    x = x / (torch::linalg_vector_norm(x) + 1e-7);
    tiled_newton_schulz(x.data_ptr<float>(), x.size(0), x.size(1), steps, room);
    results[place] = tall ? x.t().contiguous() : x;
  });
  return results;
}

// Momentum, look-ahead, decay and step of one matrix in one pass.
void update_on_host(const torch::Tensor& parameter, const torch::Tensor& orthogonal,
                    const torch::Tensor& momentum, const MuonUpdate& update) {
  constexpr std::int64_t kGrain = 1 << 15;
  const auto* g = orthogonal.const_data_ptr<float>();
  auto* p = parameter.data_ptr<float>();
  auto* m = momentum.data_ptr<float>();
  at::parallel_for(0, parameter.numel(), kGrain, [&](std::int64_t first, std::int64_t last) {
    row_kernels().muon(update, last - first, g + first, p + first, m + first);
  });
  parameter.unsafeGetTensorImpl()->bump_version();
}

bool takes_host_kernel(const torch::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == torch::kFloat32 &&
         tensor.is_contiguous();
}

NewtonSchulzDtype fastest_dtype(const torch::Device& device) {
  if (device.is_cpu()) {
    return has_tile_products() || has_rounded_products() ? NewtonSchulzDtype::kBfloat16
           : has_half_products()                         ? NewtonSchulzDtype::kFloat16
                                                         : NewtonSchulzDtype::kFloat32;
  }
  return choose_compute_dtype(ComputeDtype::kAuto, device) == torch::kBFloat16
             ? NewtonSchulzDtype::kBfloat16
             : NewtonSchulzDtype::kFloat32;
}

NewtonSchulzDtype dtype_of(const OrthogonalizeOptions& options, const torch::Device& device) {
  return options.dtype == NewtonSchulzDtype::kAuto ? fastest_dtype(device) : options.dtype;
}

torch::Tensor orthogonalize_stack(const torch::Tensor& stack, const OrthogonalizeOptions& options) {
  const bool on_host = stack.device().is_cpu() && stack.scalar_type() == torch::kFloat32;
  const auto dtype = dtype_of(options, stack.device());
  if (on_host && dtype == NewtonSchulzDtype::kBfloat16 && has_rounded_products()) {
    return rounded_newton_schulz(stack, options.steps);
  }
  if (on_host && dtype == NewtonSchulzDtype::kFloat16 && has_half_products()) {
    return half_newton_schulz(stack, options.steps);
  }
  return on_host && options.symmetric && dtype != NewtonSchulzDtype::kBfloat16
             ? symmetric_newton_schulz(stack, options.steps)
             : newton_schulz(stack, options.steps, dtype);
}

}  // namespace

std::vector<torch::Tensor> orthogonalize(const std::vector<torch::Tensor>& gradients,
                                         const OrthogonalizeOptions& options) {
  using Shape = std::pair<std::int64_t, std::int64_t>;  // the shorter side first
  std::map<Shape, std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    NEEDLE_CHECK(gradients[i].dim() == 2, "gradient {} has {} dimensions, not 2", i,
                 gradients[i].dim());
    const auto rows = gradients[i].size(0), columns = gradients[i].size(1);
    groups[{std::min(rows, columns), std::max(rows, columns)}].push_back(i);
  }
  if (has_tile_products() &&
      std::all_of(gradients.begin(), gradients.end(), [&](const auto& matrix) {
        return matrix.device().is_cpu() && matrix.scalar_type() == torch::kFloat32 &&
               dtype_of(options, matrix.device()) == NewtonSchulzDtype::kBfloat16;
      })) {
    return tiled_orthogonalize(gradients, options.steps);
  }
  std::vector<torch::Tensor> results(gradients.size());
  for (const auto& [shape, members] : groups) {
    std::vector<torch::Tensor> wide;  // the smaller Gram matrix: rows <= columns
    wide.reserve(members.size());
    for (const std::size_t i : members) {
      wide.push_back(gradients[i].size(0) > gradients[i].size(1) ? gradients[i].t() : gradients[i]);
    }
    const auto orthogonal = orthogonalize_stack(torch::stack(wide), options).unbind(0);
    for (std::size_t k = 0; k < members.size(); ++k) {
      const auto& gradient = gradients[members[k]];
      results[members[k]] =
          gradient.size(0) > gradient.size(1) ? orthogonal[k].t().contiguous() : orthogonal[k];
    }
  }
  return results;
}

bool orthogonalizes_each_alone(const OrthogonalizeOptions& options) {
  return has_tile_products() && dtype_of(options, torch::kCPU) == NewtonSchulzDtype::kBfloat16;
}

torch::Tensor orthogonalize(const torch::Tensor& gradient) {
  return orthogonalize(std::vector<torch::Tensor>{gradient}).front();
}

namespace {

std::vector<torch::Tensor> orthogonal_gradients(const std::vector<torch::Tensor>& gradients,
                                                const MuonConfig& config,
                                                const Orthogonalizer& orthogonalizer = {}) {
  const OrthogonalizeOptions options{.steps = config.newton_schulz_steps,
                                     .dtype = config.newton_schulz_dtype,
                                     .symmetric = config.symmetric_products};
  return orthogonalizer ? orthogonalizer(gradients, options) : orthogonalize(gradients, options);
}

}  // namespace

void muon_step(const std::vector<torch::Tensor>& parameters,
               const std::vector<torch::Tensor>& gradients,
               const std::vector<torch::Tensor>& momenta, double lr, const MuonConfig& config,
               const Orthogonalizer& orthogonalizer) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  const auto update = orthogonal_gradients(gradients, config, orthogonalizer);
  if (std::all_of(parameters.begin(), parameters.end(), takes_host_kernel)) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      update_on_host(parameters[i], update[i].contiguous(), momenta[i],
                     {.momentum = static_cast<float>(config.momentum),
                      .weight_decay = static_cast<float>(config.weight_decay),
                      .lr = static_cast<float>(lr)});
    }
    return;
  }
  at::_foreach_mul_(momenta, config.momentum);
  at::_foreach_add_(momenta, update);
  at::_foreach_add_(update, momenta, config.momentum);  // Nesterov: g + momentum * m
  at::_foreach_add_(update, parameters, config.weight_decay);
  at::_foreach_add_(parameters, update, -lr);
}

void muon_step(const std::vector<torch::Tensor>& parameters,
               const std::vector<torch::Tensor>& gradients,
               const std::vector<torch::Tensor>& momenta, const MuonOnDevice& now,
               const MuonConfig& config) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  const auto update = orthogonal_gradients(gradients, config);
  at::_foreach_mul_(momenta, now.momentum);
  at::_foreach_add_(momenta, update);
  at::_foreach_add_(update, momenta, config.momentum);
  at::_foreach_add_(update, parameters, config.weight_decay);
  at::_foreach_mul_(update, now.lr);
  at::_foreach_sub_(parameters, update);
}

}  // namespace needle
