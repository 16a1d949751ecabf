#include "needle/model/row_ops.h"

#include <algorithm>

#include <ATen/Parallel.h>

namespace needle {
namespace {

// Gradients of scales are sums over thousands of rows: each chunk has its own, so that rounding is
// that of short sums and does not depend on the number of threads.
constexpr std::int64_t kChunkRows = 64;

const float* data_of(const torch::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

// Calls work(chunk, first row, last row).
template <typename Work>
void for_chunks(std::int64_t rows, const Work& work) {
  const std::int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  at::parallel_for(0, chunks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t chunk = first; chunk < last; ++chunk) {
      work(chunk, chunk * kChunkRows, std::min(rows, (chunk + 1) * kChunkRows));
    }
  });
}

torch::Tensor chunk_sums(std::int64_t rows, std::int64_t width, const torch::Tensor& like) {
  return torch::zeros({(rows + kChunkRows - 1) / kChunkRows, width}, like.options());
}

float* write_to(const torch::Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<float>() : nullptr;
}

// Where the values of a result go; null if it is of the other type.
float* wide_of(const torch::Tensor& result) {
  return result.scalar_type() == torch::kFloat32 ? result.data_ptr<float>() : nullptr;
}
std::uint16_t* rounded_of(const torch::Tensor& result) {
  return result.scalar_type() == torch::kBFloat16
             ? reinterpret_cast<std::uint16_t*>(result.data_ptr<at::BFloat16>())
             : nullptr;
}

}  // namespace

Normed norm_rows(const torch::Tensor& x, const torch::Tensor& scale, torch::ScalarType kind) {
  const auto width = x.size(-1), rows = x.numel() / width;
  Normed normed{.rows = torch::empty({rows, width}, x.options().dtype(kind)),
                .inverse_rms = torch::empty({rows}, x.options())};
  const NormForward task{.width = width,
                         .x = data_of(x),
                         .scale = data_of(scale),
                         .normed = wide_of(normed.rows),
                         .rounded = rounded_of(normed.rows),
                         .inverse_rms = normed.inverse_rms.data_ptr<float>()};
  for_chunks(rows, [&](std::int64_t, std::int64_t first, std::int64_t last) {
    row_kernels().norm_forward(task, first, last);
  });
  return normed;
}

NormGrad norm_rows_backward(const torch::Tensor& x, const torch::Tensor& scale,
                            const torch::Tensor& inverse_rms, const torch::Tensor& normed_grad,
                            const torch::Tensor& through) {
  const auto width = x.size(-1), rows = x.numel() / width;
  NormGrad grad{.x = torch::empty({rows, width}, x.options()), .scale = chunk_sums(rows, width, x)};
  auto* sums = grad.scale.data_ptr<float>();
  const NormBackward task{.width = width,
                          .x = data_of(x),
                          .scale = data_of(scale),
                          .inverse_rms = data_of(inverse_rms),
                          .normed_grad = data_of(normed_grad),
                          .through = data_of(through),
                          .x_grad = grad.x.data_ptr<float>()};
  for_chunks(rows, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
    NormBackward part = task;
    part.scale_grad = sums + chunk * width;
    row_kernels().norm_backward(part, first, last);
  });
  grad.scale = grad.scale.sum(0);
  return grad;
}

torch::Tensor empty_heads(const HeadSource& source, std::int64_t heads) {
  return heads == 0 ? torch::Tensor()
                    : torch::empty({source.B, heads, source.layout.length, source.layout.dim},
                                   source.projected.options());
}

Heads make_heads(const HeadSource& source) {
  const HeadLayout& layout = source.layout;
  const auto rows = source.B * layout.length;
  Heads heads{.q = empty_heads(source, layout.heads),
              .k = empty_heads(source, layout.kv_heads),
              .v = empty_heads(source, layout.kv_heads),
              .inverse_rms =
                  torch::empty({rows, layout.heads + layout.kv_heads}, source.projected.options())};
  const HeadsForward task{.layout = layout,
                          .rope = {.cos = data_of(source.cos), .sin = data_of(source.sin)},
                          .projected = data_of(source.projected),
                          .q_scale = data_of(source.q_scale),
                          .k_scale = data_of(source.k_scale),
                          .q = write_to(heads.q),
                          .k = write_to(heads.k),
                          .v = write_to(heads.v),
                          .inverse_rms = heads.inverse_rms.data_ptr<float>()};
  for_chunks(rows, [&](std::int64_t, std::int64_t first, std::int64_t last) {
    row_kernels().heads_forward(task, first, last);
  });
  return heads;
}

ScaleGrads make_heads_backward(const HeadSource& source, const Heads& grads,
                               const torch::Tensor& inverse_rms, torch::Tensor& projected_grad) {
  const HeadLayout& layout = source.layout;
  const auto rows = source.B * layout.length;
  ScaleGrads scales{.q = chunk_sums(rows, layout.dim, source.projected),
                    .k = chunk_sums(rows, layout.dim, source.projected)};
  const HeadsBackward task{.layout = layout,
                           .rope = {.cos = data_of(source.cos), .sin = data_of(source.sin)},
                           .projected = data_of(source.projected),
                           .q_scale = data_of(source.q_scale),
                           .k_scale = data_of(source.k_scale),
                           .inverse_rms = data_of(inverse_rms),
                           .q_grad = data_of(grads.q),
                           .k_grad = data_of(grads.k),
                           .v_grad = data_of(grads.v),
                           .projected_grad = wide_of(projected_grad),
                           .rounded_grad = rounded_of(projected_grad)};
  auto *q_sums = scales.q.data_ptr<float>(), *k_sums = scales.k.data_ptr<float>();
  for_chunks(rows, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
    HeadsBackward part = task;
    part.q_scale_grad = q_sums + chunk * layout.dim;
    part.k_scale_grad = k_sums + chunk * layout.dim;
    row_kernels().heads_backward(part, first, last);
  });
  return {.q = scales.q.sum(0), .k = scales.k.sum(0)};
}

}  // namespace needle
