// Products of float32 matrices whose factors may be rounded to bfloat16 first: a CPU with AMX, or
// with AVX512_BF16 on AMD, multiplies those twice to five times as fast. Sums stay float32, so a
// product is as exact as its rounded factors (relative error 2^-9 each). Without autograd.
#pragma once

#include <torch/torch.h>

namespace needle {

// `matrix` as a factor: itself for float32, rounded to the nearest for bfloat16. A factor of
// several products is made once.
torch::Tensor as_factor(const torch::Tensor& matrix, torch::ScalarType dtype);

// The same for a float32 matrix that lives on anyway or is soon gone: left as it is where products
// round while they read (AMX).
torch::Tensor as_passing_factor(const torch::Tensor& matrix, torch::ScalarType dtype);

// alpha * a b, float32 [rows, columns]; a [rows, inner] and b [inner, columns], float32 or of type
// `factors`, .t() of one welcome. Factors of bfloat16 are rounded if they are not. Throws Error on
// other types and on shapes that do not fit.
torch::Tensor product(const torch::Tensor& a, const torch::Tensor& b, torch::ScalarType factors,
                      double alpha = 1.0);

// result = alpha * a b + beta * result, float32 and contiguous. beta 0 does not read `result`.
void product_into(torch::Tensor result, const torch::Tensor& a, const torch::Tensor& b,
                  torch::ScalarType factors, double alpha, double beta);

}  // namespace needle
