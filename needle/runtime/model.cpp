#include "needle/runtime/model.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "needle/core/error.h"

namespace needle::runtime {
namespace {

static_assert(kPanelWidth == kRowBlock && kPanelGroup == kGroupSize,
              "a panel is a row block of the file");

std::vector<float> norm_factors(const WeightsFile& file, const std::string& name) {
  const auto scale = file.vector(name);
  std::vector<float> factors(scale.begin(), scale.end());
  std::ranges::for_each(factors, [](float& factor) { factor += 1.0f; });
  return factors;
}

void read_sub_layer(const WeightsFile& file, const std::string& prefix, SubLayer& layer) {
  layer.norm = norm_factors(file, prefix + "norm.scale");
  layer.gate = 1.0f / (1.0f + std::exp(-file.vector(prefix + "gate")[0]));
}

AttentionLayer read_attention(const WeightsFile& file, const std::string& prefix) {
  AttentionLayer layer;
  read_sub_layer(file, prefix, layer);
  AttentionWeights& weights = layer.attention;
  weights.q_proj = Matrix(file.matrix(prefix + "attention.q_proj.weight"));
  weights.k_proj = Matrix(file.matrix(prefix + "attention.k_proj.weight"));
  weights.v_proj = Matrix(file.matrix(prefix + "attention.v_proj.weight"));
  weights.out_proj = Matrix(file.matrix(prefix + "attention.out_proj.weight"));
  weights.q_norm = norm_factors(file, prefix + "attention.q_norm.scale");
  weights.k_norm = norm_factors(file, prefix + "attention.k_norm.scale");
  return layer;
}

std::optional<FeedForwardLayer> read_feed_forward(const WeightsFile& file,
                                                  const std::string& prefix) {
  if (file.model_config().no_feedforward) {
    return std::nullopt;
  }
  FeedForwardLayer layer;
  read_sub_layer(file, prefix, layer);
  layer.gate_proj = Matrix(file.matrix(prefix + "feed_forward.gate_proj.weight"));
  layer.up_proj = Matrix(file.matrix(prefix + "feed_forward.up_proj.weight"));
  layer.down_proj = Matrix(file.matrix(prefix + "feed_forward.down_proj.weight"));
  return layer;
}

}  // namespace

Matrix::Matrix(const MatrixView& stored) : in_(stored.cols), out_(stored.rows) {
  const std::int64_t panels = row_blocks(out_);
  const auto size = static_cast<std::size_t>(panels * in_ * kPanelWidth);
  if (stored.encoding == WeightEncoding::kF32) {
    values_ = AlignedBuffer<float>(size);
    const std::vector<float> weights = unpack_matrix(stored);
    for (std::int64_t row = 0; row < out_; ++row) {
      float* const to = values_.data() + row / kPanelWidth * in_ * kPanelWidth + row % kPanelWidth;
      for (std::int64_t i = 0; i < in_; ++i) {
        to[i * kPanelWidth] = weights[static_cast<std::size_t>(row * in_ + i)];
      }
    }
    return;
  }
  codes_ = AlignedBuffer<std::int8_t>(size);
  const std::int64_t groups = column_groups(in_);
  CodeBlock block;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    for (std::int64_t group = 0; group < groups; ++group) {
      unpack_block(stored, panel, group, block);
      const std::int64_t count = std::min(kGroupSize, in_ - group * kGroupSize);
      std::copy_n(&block[0][0], count * kPanelWidth,
                  codes_.data() + (panel * in_ + group * kGroupSize) * kPanelWidth);
    }
  }
  const std::vector<float> scales = unpack_scales(stored);
  scales_ = AlignedBuffer<float>(scales.size());
  std::ranges::copy(scales, scales_.data());
}

Panels Matrix::panels() const {
  return {.in = in_,
          .out = out_,
          .stride = in_ * kPanelWidth,
          .values = values_.data(),
          .codes = codes_.data(),
          .scales = scales_.data()};
}

void Matrix::copy_row(std::int64_t row, float scale, std::span<float> to) const noexcept {
  const std::int64_t panel = row / kPanelWidth;
  const std::int64_t column = row % kPanelWidth;
  const std::int64_t first = panel * in_ * kPanelWidth + column;
  if (values_.data() != nullptr) {
    for (std::int64_t i = 0; i < in_; ++i) {
      to[static_cast<std::size_t>(i)] = scale * values_.data()[first + i * kPanelWidth];
    }
    return;
  }
  const float* const scales = scales_.data() + panel * column_groups(in_) * kPanelWidth + column;
  for (std::int64_t i = 0; i < in_; ++i) {
    to[static_cast<std::size_t>(i)] =
        scale * (scales[i / kPanelGroup * kPanelWidth] *
                 static_cast<float>(codes_.data()[first + i * kPanelWidth]));
  }
}

std::shared_ptr<const Model> Model::load(const WeightsFile& file) {
  auto model = std::make_shared<Model>();
  model->config = file.model_config();
  model->embedding = Matrix(file.matrix("embedding.weight"));
  for (std::int64_t layer = 0; layer < model->config.num_encoder_layers; ++layer) {
    const std::string prefix = format("encoder.layers.{}.", layer);
    model->encoder.push_back({.self = read_attention(file, prefix + "self_attn."),
                              .ffn = read_feed_forward(file, prefix + "ffn.")});
  }
  model->encoder_norm = norm_factors(file, "encoder.final_norm.scale");
  for (std::int64_t layer = 0; layer < model->config.num_decoder_layers; ++layer) {
    const std::string prefix = format("decoder.layers.{}.", layer);
    model->decoder.push_back({.self = read_attention(file, prefix + "self_attn."),
                              .cross = read_attention(file, prefix + "cross_attn."),
                              .ffn = read_feed_forward(file, prefix + "ffn.")});
  }
  model->decoder_norm = norm_factors(file, "decoder.final_norm.scale");
  model->contrastive_hidden = Matrix(file.matrix("contrastive_head.hidden.weight"));
  const auto bias = file.vector("contrastive_head.hidden.bias");
  model->contrastive_bias.assign(bias.begin(), bias.end());
  model->contrastive_proj = Matrix(file.matrix("contrastive_head.proj.weight"));
  return model;
}

}  // namespace needle::runtime
