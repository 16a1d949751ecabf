// Muon: momentum on orthogonalised gradients, for dense kernels. Specification, section 7.
// Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <torch/torch.h>

#include "needle/core/enum_names.h"

namespace needle {

// kFloat16: products of float16 with sums that end in float32 (model/kernels/half_product.h), more
// exact than bfloat16; where the CPU has no such instructions, and elsewhere, float32. kAuto: the
// fastest that the device has: bfloat16 with AMX (model/product.h) and on GPUs, else float16, else
// float32.
enum class NewtonSchulzDtype { kFloat32, kBfloat16, kFloat16, kAuto };
inline constexpr EnumNames<NewtonSchulzDtype, 4> kNewtonSchulzDtypeNames{
    {{{NewtonSchulzDtype::kFloat32, "float32"},
      {NewtonSchulzDtype::kBfloat16, "bfloat16"},
      {NewtonSchulzDtype::kFloat16, "float16"},
      {NewtonSchulzDtype::kAuto, "auto"}}}};
template <>
struct EnumTable<NewtonSchulzDtype> {
  static constexpr const auto& value = kNewtonSchulzDtypeNames;
};

struct MuonConfig {
  double peak_lr = 0.02;
  double momentum = 0.95;
  double weight_decay = 0.01;
  std::int64_t newton_schulz_steps = 5;
  NewtonSchulzDtype newton_schulz_dtype = NewtonSchulzDtype::kFloat32;
  bool symmetric_products = false;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("peak_lr", self.peak_lr, "Learning rate after warmup");
    visit("momentum", self.momentum,
          "Decay of the momentum; the update looks ahead along it (Nesterov)");
    visit("weight_decay", self.weight_decay,
          "Added to the update, times the weight, before the learning rate");
    visit("newton_schulz_steps", self.newton_schulz_steps, "Iterations of the orthogonalisation");
    visit("newton_schulz_dtype", self.newton_schulz_dtype,
          "float32 is exact to the reference; bfloat16 is faster where the hardware has it; "
          "float16 is faster on a CPU with AVX512-FP16, elsewhere float32; auto takes the fastest "
          "that the device has");
    visit(
        "symmetric_products", self.symmetric_products,
        "float32 and float16 on a CPU: of a symmetric product compute half; equal within rounding");
  }
};

// The nearest semi-orthogonal matrix to each of `gradients` (all [rows, columns]), approximately:
// singular values end near 1 (0.7 to 1.2), not at it. A zero matrix stays zero. float32 out,
// whatever `dtype` the products are taken in. Matrices of one shape (or its transpose) go through
// together; the results keep the order.
//
// symmetric: float32 and float16 on the CPU; X X^T and the square of it are symmetric, so their
// lower blocks alone are products and the rest is copied. A thread takes a matrix through all
// steps, in its cache.
struct OrthogonalizeOptions {
  std::int64_t steps = 5;
  NewtonSchulzDtype dtype = NewtonSchulzDtype::kFloat32;
  bool symmetric = false;
};
std::vector<torch::Tensor> orthogonalize(const std::vector<torch::Tensor>& gradients,
                                         const OrthogonalizeOptions& options = {});
torch::Tensor orthogonalize(const torch::Tensor& gradient);

// Whether each matrix on the CPU gets the same bits whatever else is given with it.
bool orthogonalizes_each_alone(const OrthogonalizeOptions& options);

// Another way to the results of orthogonalize().
using Orthogonalizer = std::function<std::vector<torch::Tensor>(
    const std::vector<torch::Tensor>& gradients, const OrthogonalizeOptions& options)>;

// One update of every parameter, in place: g = orthogonalize(gradient); m = momentum * m + g;
// parameter -= lr * (g + momentum * m + weight_decay * parameter). No factor for the shape.
void muon_step(const std::vector<torch::Tensor>& parameters,
               const std::vector<torch::Tensor>& gradients,
               const std::vector<torch::Tensor>& momenta, double lr, const MuonConfig& config,
               const Orthogonalizer& orthogonalizer = {});

// The same where the host does not know whether the update is to happen: float32 [] on the device,
// `lr` 0 and `momentum` 1 leave everything as it is (with gradients of zeros).
struct MuonOnDevice {
  torch::Tensor lr;
  torch::Tensor momentum;
};
void muon_step(const std::vector<torch::Tensor>& parameters,
               const std::vector<torch::Tensor>& gradients,
               const std::vector<torch::Tensor>& momenta, const MuonOnDevice& now,
               const MuonConfig& config);

}  // namespace needle
