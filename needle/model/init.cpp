#include "needle/model/init.h"

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/random.h"

namespace needle {
namespace {

constexpr double kStandardDeviation = 0.02;

void assign(torch::Tensor parameter, std::vector<float>& values) {
  parameter.copy_(torch::from_blob(values.data(), parameter.sizes(), torch::kFloat32));
}

// Output and down projections write into the residual stream: narrower, so that the sum over all
// blocks stays tame.
double standard_deviation(std::string_view name, const ModelConfig& config) {
  const bool writes_stream =
      name.ends_with("out_proj.weight") || name.ends_with("down_proj.weight");
  const auto layers = static_cast<double>(config.num_encoder_layers + config.num_decoder_layers);
  return writes_stream ? kStandardDeviation / std::sqrt(2.0 * layers) : kStandardDeviation;
}

// [rows, columns], rows <= columns, orthonormal: Gram-Schmidt on normal draws, twice, in double. (A
// library's QR would round differently from machine to machine.)
std::vector<double> orthonormal_rows(std::int64_t rows, std::int64_t columns, Random& random) {
  const auto width = static_cast<std::size_t>(columns);
  std::vector<double> matrix(static_cast<std::size_t>(rows) * width);
  for (double& value : matrix) {
    value = random.normal();
  }
  const auto row = [&](std::size_t i) { return std::span(matrix).subspan(i * width, width); };
  for (std::size_t i = 0; i < static_cast<std::size_t>(rows); ++i) {
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t j = 0; j < i; ++j) {
        double overlap = 0.0;
        for (std::size_t c = 0; c < width; ++c) {
          overlap += row(i)[c] * row(j)[c];
        }
        for (std::size_t c = 0; c < width; ++c) {
          row(i)[c] -= overlap * row(j)[c];
        }
      }
    }
    double squares = 0.0;
    for (const double value : row(i)) {
      squares += value * value;
    }
    for (double& value : row(i)) {
      value /= std::sqrt(squares);
    }
  }
  return matrix;
}

// v_proj = P; out_proj = P^T per kv head, divided by the query heads that share it: together P^T P,
// a projection of the attended token onto K*D dimensions.
void init_as_copy(Attention& attention, const ModelConfig& config, Random& random) {
  const auto d = static_cast<std::size_t>(config.d_model);
  const auto head_dim = static_cast<std::size_t>(config.head_dim());
  const auto sharing = static_cast<std::size_t>(config.num_heads / config.num_kv_heads);
  const std::vector<double> p = orthonormal_rows(config.kv_dim(), config.d_model, random);
  std::vector<float> v_proj(p.begin(), p.end());  // [K*D, d]
  std::vector<float> out_proj(d * d);             // [d, H*D]
  for (std::size_t to = 0; to < d; ++to) {
    for (std::size_t from = 0; from < d; ++from) {
      const auto kv_row = from / head_dim / sharing * head_dim + from % head_dim;
      out_proj[to * d + from] =
          static_cast<float>(p[kv_row * d + to] / static_cast<double>(sharing));
    }
  }
  assign(attention->v_proj->weight, v_proj);
  assign(attention->out_proj->weight, out_proj);
}

}  // namespace

void init_parameters(Needle& model, InitMethod method, std::uint64_t seed) {
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    torch::Tensor& parameter = item.value();
    if (parameter.dim() != 2) {  // norm scales, gates, biases, log_temp
      parameter.zero_();
      continue;
    }
    Random random(derive_seed(seed, item.key()));
    const double deviation = standard_deviation(item.key(), model->config());
    std::vector<float> values(static_cast<std::size_t>(parameter.numel()));
    for (float& value : values) {
      value = static_cast<float>(deviation * random.normal());
    }
    assign(parameter, values);
  }
  if (method == InitMethod::kReference) {
    return;
  }
  std::uint64_t index = 0;
  for (const auto& layer : *model->decoder->layers) {
    Random random(derive_seed(seed, "copy_initialisation", index++));
    init_as_copy(layer->as<DecoderBlock>()->cross_attn->attention, model->config(), random);
  }
}

}  // namespace needle
