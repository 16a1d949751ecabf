#include "needle/train/muon.h"

#include <algorithm>
#include <map>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

// x: [n, rows, columns], rows <= columns; x <- a x + (b G + c G G) x with G = x x^T, `steps` times.
torch::Tensor newton_schulz(torch::Tensor x, std::int64_t steps, NewtonSchulzDtype dtype) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;  // steepest slope at zero in five steps
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

}  // namespace

std::vector<torch::Tensor> orthogonalize(const std::vector<torch::Tensor>& gradients,
                                         std::int64_t steps, NewtonSchulzDtype dtype) {
  using Shape = std::pair<std::int64_t, std::int64_t>;  // the shorter side first
  std::map<Shape, std::vector<std::size_t>> groups;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    NEEDLE_CHECK(gradients[i].dim() == 2, "gradient {} has {} dimensions, not 2", i,
                 gradients[i].dim());
    const auto rows = gradients[i].size(0), columns = gradients[i].size(1);
    groups[{std::min(rows, columns), std::max(rows, columns)}].push_back(i);
  }
  std::vector<torch::Tensor> results(gradients.size());
  for (const auto& [shape, members] : groups) {
    std::vector<torch::Tensor> wide;  // the smaller Gram matrix: rows <= columns
    wide.reserve(members.size());
    for (const std::size_t i : members) {
      wide.push_back(gradients[i].size(0) > gradients[i].size(1) ? gradients[i].t() : gradients[i]);
    }
    const auto orthogonal = newton_schulz(torch::stack(wide), steps, dtype).unbind(0);
    for (std::size_t k = 0; k < members.size(); ++k) {
      const auto& gradient = gradients[members[k]];
      results[members[k]] =
          gradient.size(0) > gradient.size(1) ? orthogonal[k].t().contiguous() : orthogonal[k];
    }
  }
  return results;
}

torch::Tensor orthogonalize(const torch::Tensor& gradient) {
  return orthogonalize(std::vector<torch::Tensor>{gradient}).front();
}

void muon_step(const std::vector<torch::Tensor>& parameters,
               const std::vector<torch::Tensor>& gradients,
               const std::vector<torch::Tensor>& momenta, double lr, const MuonConfig& config) {
  if (parameters.empty()) {
    return;
  }
  const torch::NoGradGuard no_grad;
  const auto update =
      orthogonalize(gradients, config.newton_schulz_steps, config.newton_schulz_dtype);
  at::_foreach_mul_(momenta, config.momentum);
  at::_foreach_add_(momenta, update);
  at::_foreach_add_(update, momenta, config.momentum);  // Nesterov: g + momentum * m
  at::_foreach_add_(update, parameters, config.weight_decay);
  at::_foreach_add_(parameters, update, -lr);
}

}  // namespace needle
