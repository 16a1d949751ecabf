#include "needle/model/attention.h"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

struct Shape {
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t queries;
  std::int64_t keys;
};

Attention random_attention(const Shape& shape) {
  auto config = test::small_config();
  config.d_model = 24;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  Attention attention(config);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : attention->parameters()) {
    parameter.copy_(torch::randn(parameter.sizes()) * 0.4);
  }
  return attention;
}

// Head by head and query by query in float64, from the specification's text.
torch::Tensor plain_attention(Attention& attention, const Shape& shape, const torch::Tensor& x,
                              const torch::Tensor& context, const torch::Tensor& allowed,
                              const Rope& rope) {
  const auto q = attention->queries(x, rope).to(torch::kFloat64);  // [B, H, T, D]
  const auto kv = attention->keys_values(context, rope);
  const auto keys = kv.keys.to(torch::kFloat64);
  const auto values = kv.values.to(torch::kFloat64);
  const auto mask = allowed.expand({x.size(0), 1, x.size(1), context.size(1)});
  auto out = torch::zeros_like(q);
  for (std::int64_t b = 0; b < q.size(0); ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const auto kv_head = h / (shape.heads / shape.kv_heads);
      for (std::int64_t t = 0; t < q.size(2); ++t) {
        auto scores =
            keys[b][kv_head].matmul(q[b][h][t]) / std::sqrt(static_cast<double>(q.size(3)));
        const auto row = mask[b][0][t];
        scores = torch::where(row, scores,
                              torch::full_like(scores, std::numeric_limits<float>::lowest()));
        out[b][h][t].copy_(torch::softmax(scores, 0).matmul(values[b][kv_head]));
      }
    }
  }
  return attention->out_proj(out.transpose(1, 2).flatten(2).to(torch::kFloat32));
}

// Random, with a row of queries that may attend to nothing.
torch::Tensor random_mask(std::int64_t batch, const Shape& shape) {
  auto allowed = torch::rand({batch, 1, shape.queries, shape.keys}) < 0.6;
  allowed[0][0][0].fill_(false);
  return allowed;
}

const std::vector<Shape> kShapes = {
    {4, 2, 5, 9}, {4, 4, 7, 3}, {2, 1, 1, 6}, {6, 2, 8, 8}, {1, 1, 3, 1}};

TEST(AttentionTest, BothKernelsFollowTheEquation) {
  torch::manual_seed(4);
  for (const Shape& shape : kShapes) {
    for (const bool rotated : {false, true}) {
      auto attention = random_attention(shape);
      const auto x = torch::randn({3, shape.queries, 24});
      const auto context = torch::randn({3, shape.keys, 24});
      const auto rope = rotated && shape.queries == shape.keys
                            ? make_rope(shape.queries, 24 / shape.heads, 10000.0, torch::kCPU)
                            : Rope{};
      const auto allowed = random_mask(3, shape);
      const torch::NoGradGuard no_grad;
      const auto expected = plain_attention(attention, shape, x, context, allowed, rope);
      for (const auto kernel : {AttentionKernel::kExact, AttentionKernel::kFused}) {
        const auto actual = attention(x, context, AttentionMask(allowed, kernel), rope);
        EXPECT_LT(test::largest_difference(actual, expected), 5e-6)
            << kAttentionKernelNames.name(kernel) << ' ' << shape.heads << '/' << shape.kv_heads;
      }
    }
  }
}

TEST(AttentionTest, ARowWithNothingAllowedAveragesAllValues) {
  torch::manual_seed(5);
  const Shape shape{4, 2, 2, 6};
  auto attention = random_attention(shape);
  const auto x = torch::randn({1, 2, 24});
  const auto context = torch::randn({1, 6, 24});
  auto allowed = torch::ones({1, 1, 2, 6}, torch::kBool);
  allowed[0][0][1].fill_(false);
  const torch::NoGradGuard no_grad;
  const auto mean = attention->keys_values(context).values.mean(2);  // [1, K, D]
  const auto expected = attention->out_proj(mean.repeat_interleave(2, 1).flatten(1))[0];
  for (const auto kernel : {AttentionKernel::kExact, AttentionKernel::kFused}) {
    const auto y = attention(x, context, AttentionMask(allowed, kernel));
    EXPECT_LT(test::largest_difference(y[0][1], expected), 2e-6);
    EXPECT_GT(test::largest_difference(y[0][0], expected), 1e-3);
  }
}

TEST(AttentionTest, TheFusedKernelHasTheGradientsOfTheExactOne) {
  torch::manual_seed(6);
  for (const Shape& shape : kShapes) {
    auto attention = random_attention(shape);
    const auto x = torch::randn({3, shape.queries, 24});
    const auto context = torch::randn({3, shape.keys, 24});
    const auto allowed = random_mask(3, shape);
    const auto direction = torch::randn({3, shape.queries, 24});
    const auto gradients = [&](AttentionKernel kernel) {
      attention->zero_grad();
      (attention(x, context, AttentionMask(allowed, kernel)) * direction).sum().backward();
      std::vector<torch::Tensor> copies;
      for (const auto& parameter : attention->parameters()) {
        copies.push_back(parameter.grad().clone());
      }
      return copies;
    };
    const auto exact = gradients(AttentionKernel::kExact);
    const auto fused = gradients(AttentionKernel::kFused);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double scale = exact[i].abs().max().item<double>();
      EXPECT_LT(test::largest_difference(fused[i], exact[i]), 1e-5 * scale + 1e-5)
          << "parameter " << i;
    }
  }
}

TEST(KvCacheTest, KeepsEverythingAppendedWhileItGrows) {
  torch::manual_seed(7);
  KvCache cache;
  std::vector<torch::Tensor> keys;
  std::vector<torch::Tensor> values;
  for (int i = 0; i < 200; ++i) {
    keys.push_back(torch::randn({3, 2, 1, 4}));
    values.push_back(torch::randn({3, 2, 1, 4}));
    const auto all = cache.append({.keys = keys.back(), .values = values.back()});
    ASSERT_EQ(cache.length(), i + 1);
    ASSERT_TRUE(test::same_values(all.keys, torch::cat(keys, 2)));
    ASSERT_TRUE(test::same_values(all.values, torch::cat(values, 2)));
  }
  const auto rows = torch::tensor({2, 0}, torch::kInt64);
  cache.keep_rows(rows);
  const auto next = torch::randn({2, 2, 1, 4});
  const auto kept = cache.append({.keys = next, .values = next});
  EXPECT_TRUE(test::same_values(kept.keys,
                                torch::cat({torch::cat(keys, 2).index_select(0, rows), next}, 2)));
}

TEST(MaskTest, SegmentsSeeThemselvesAndPaddingSeesNothing) {
  const auto decoder = torch::tensor({{1, 1, 2, 0}}, torch::kInt32);
  const auto encoder = torch::tensor({{1, 2, 0}}, torch::kInt32);
  const auto expected =
      torch::tensor({{1, 0, 0}, {1, 0, 0}, {0, 1, 0}, {0, 0, 0}}, torch::kInt32).to(torch::kBool);
  EXPECT_TRUE(test::same_values(segment_mask(decoder, encoder), expected.view({1, 1, 4, 3})));
}

TEST(MaskTest, PaddingIsATestOfTheTokenAndCausalLooksBack) {
  const auto tokens = torch::tensor({{7, 0, 5, 0}}, torch::kInt64);
  EXPECT_TRUE(test::same_values(
      padding_mask(tokens, 0),
      torch::tensor({1, 0, 1, 0}, torch::kInt32).to(torch::kBool).view({1, 1, 1, 4})));
  const auto causal = causal_mask(3, torch::kCPU).view({3, 3}).to(torch::kInt64);
  EXPECT_TRUE(
      test::same_values(causal, torch::tensor({{1, 0, 0}, {1, 1, 0}, {1, 1, 1}}, torch::kInt64)));
}

}  // namespace
}  // namespace needle
