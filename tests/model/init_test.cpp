#include "needle/model/init.h"

#include <cmath>

#include <gtest/gtest.h>

#include "needle/model/checkpoint.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

Needle initialised(const ModelConfig& config, InitMethod method, std::uint64_t seed) {
  Needle model(config);
  init_parameters(model, method, seed);
  return model;
}

ModelConfig medium_config() {
  auto config = test::small_config();
  config.vocab_size = 300;
  config.d_model = 64;
  config.no_feedforward = false;
  return config;
}

TEST(InitTest, DrawsWithTheDeviationsOfTheSpecification) {
  const auto config = medium_config();
  const auto model = initialised(config, InitMethod::kReference, 1);
  const double narrow = 0.02 / std::sqrt(2.0 * 4);
  for (const auto& item : model->named_parameters()) {
    const auto& name = item.key();
    const auto& value = item.value();
    if (value.dim() < 2) {
      EXPECT_EQ(value.abs().sum().item<float>(), 0.0f) << name;
      continue;
    }
    const bool writes_stream =
        name.find("out_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
    const double expected = writes_stream ? narrow : 0.02;
    const auto n = static_cast<double>(value.numel());
    // Five standard errors of the deviation and of the mean of n normal draws.
    EXPECT_NEAR(value.std().item<double>(), expected, 5 * expected / std::sqrt(2 * n)) << name;
    EXPECT_NEAR(value.mean().item<double>(), 0.0, 5 * expected / std::sqrt(n)) << name;
  }
}

TEST(InitTest, SeedsDecideAndParametersDiffer) {
  const auto config = medium_config();
  const auto a = initialised(config, InitMethod::kReference, 1);
  const auto b = initialised(config, InitMethod::kReference, 1);
  const auto c = initialised(config, InitMethod::kReference, 2);
  for (const auto& [name, value] : named_parameters(a)) {
    EXPECT_TRUE(torch::equal(value, named_parameters(b)[name])) << name;
    if (value.dim() == 2) {
      EXPECT_FALSE(torch::equal(value, named_parameters(c)[name])) << name;
    }
  }
  const auto first = named_parameters(a)["encoder.layers.0.self_attn.attention.q_proj.weight"];
  EXPECT_FALSE(torch::equal(
      first, named_parameters(a)["encoder.layers.1.self_attn.attention.q_proj.weight"]));
}

TEST(InitTest, CopyMakesCrossAttentionAProjection) {
  const auto config = medium_config();  // 4 query heads share 2 kv heads
  auto model = initialised(config, InitMethod::kCopy, 3);
  const auto plain = initialised(config, InitMethod::kReference, 3);
  const auto sharing = config.num_heads / config.num_kv_heads;
  for (std::int64_t i = 0; i < config.num_decoder_layers; ++i) {
    auto attention = model->decoder->layers[static_cast<std::size_t>(i)]
                         ->as<DecoderBlock>()
                         ->cross_attn->attention;
    const auto p = attention->v_proj->weight.detach();  // [K*D, d]
    EXPECT_LT(test::largest_difference(p.matmul(p.t()), torch::eye(config.kv_dim())), 1e-6);
    // What a single attended token leaves in the stream: values, repeated for the query heads,
    // projected.
    const auto values = p.view({config.num_kv_heads, config.head_dim(), config.d_model})
                            .repeat_interleave(sharing, 0)
                            .reshape({config.d_model, config.d_model});
    const auto written = attention->out_proj->weight.detach().matmul(values);
    EXPECT_LT(test::largest_difference(written, p.t().matmul(p)), 1e-6);
  }
  for (const auto& [name, value] : named_parameters(model)) {
    const bool copied = name.find("cross_attn.attention.v_proj") != std::string::npos ||
                        name.find("cross_attn.attention.out_proj") != std::string::npos;
    EXPECT_EQ(torch::equal(value, named_parameters(plain)[name]), !copied) << name;
  }
}

}  // namespace
}  // namespace needle
