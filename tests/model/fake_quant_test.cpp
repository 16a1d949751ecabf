#include "needle/model/fake_quant.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "needle/quant/group_quant.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

// The rule of needle/quant on a weight [out, in]; it takes kernels as [in, out].
torch::Tensor by_quant(const torch::Tensor& weight, QuantBits bits) {
  const auto kernel = weight.t().contiguous();
  const std::span<const float> values(kernel.data_ptr<float>(),
                                      static_cast<std::size_t>(kernel.numel()));
  std::vector<float> result =
      dequantize(quantize_groups(values, kernel.size(0), kernel.size(1), bits));
  return torch::from_blob(result.data(), kernel.sizes(), torch::kFloat32).clone().t();
}

TEST(FakeQuantTest, EqualsTheRuleOfQuantOnRaggedShapes) {
  torch::manual_seed(8);
  for (const std::int64_t in : {1, 7, 31, 32, 33, 64, 95, 160}) {
    for (const std::int64_t out : {1, 5, 24}) {
      auto weight = torch::randn({out, in}) * 0.1;
      weight[0].zero_();                                                   // the floor of the scale
      const auto halves = weight.to(torch::kFloat16).to(torch::kFloat32);  // many exact ties
      for (const auto& values : {weight, halves, weight * 1e-7, weight * 1e4}) {
        EXPECT_TRUE(torch::equal(fake_quantize(values, FakeQuant::kInt4),
                                 by_quant(values, QuantBits::kInt4)));
        EXPECT_TRUE(torch::equal(fake_quantize(values, FakeQuant::kInt8),
                                 by_quant(values, QuantBits::kInt8)));
      }
    }
  }
}

TEST(FakeQuantTest, ErrorIsAtMostHalfAStep) {
  torch::manual_seed(9);
  const auto weight = torch::randn({96, 64});
  const auto step = weight.unflatten(1, {2, 32}).abs().amax(-1, true) / 7;
  const auto error = (fake_quantize(weight, FakeQuant::kInt4) - weight).abs();
  EXPECT_TRUE((error.unflatten(1, {2, 32}) <= 0.5 * step + 1e-6).all().item<bool>());
  EXPECT_GT(error.max().item<float>(), 0.0f);  // it does round
}

TEST(FakeQuantTest, GradientPassesStraightThroughAndTheValueIsExact) {
  torch::manual_seed(10);
  auto weight = (torch::randn({5, 50}) * 0.3).requires_grad_();
  const auto direction = torch::randn({5, 50});
  const auto quantised = fake_quantize(weight, FakeQuant::kInt4);
  EXPECT_TRUE(torch::equal(quantised.detach(), by_quant(weight.detach(), QuantBits::kInt4)));
  (quantised * direction).sum().backward();
  EXPECT_TRUE(torch::equal(weight.grad(), direction));
}

TEST(FakeQuantTest, ReachesEveryKernelWithAGradientThroughTextAndEmbedding) {
  auto model = test::random_model(test::small_config(), 11);
  const auto source = test::random_tokens(model->config(), 2, 7);
  const ModelInput input{.source = source,
                         .decoder_in = test::random_tokens(model->config(), 2, 5)};
  const auto plain = model->forward(input).detach();
  const auto plain_embedding = model->embed(source).detach();
  model->set_fake_quant(FakeQuant::kInt4);
  const auto logits = model->forward(input);
  const auto embedding = model->embed(source);
  EXPECT_GT(test::largest_difference(logits, plain), 1e-3);
  EXPECT_GT(test::largest_difference(embedding, plain_embedding), 1e-3);
  ((logits.square().sum() + embedding.select(1, 0).sum()) * model->log_temp.exp()).backward();
  for (const auto& item : model->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<float>(), 0.0f) << item.key();
  }
  model->set_fake_quant(FakeQuant::kNone);
  EXPECT_TRUE(torch::equal(model->forward(input).detach(), plain));
}

TEST(FakeQuantTest, TheEmbeddingMayJoin) {
  auto model = test::random_model(test::small_config(), 12);
  const ModelInput input{.source = test::random_tokens(model->config(), 2, 7),
                         .decoder_in = test::random_tokens(model->config(), 2, 5)};
  model->set_fake_quant(FakeQuant::kNone, FakeQuant::kInt8);
  const auto joined = model->forward(input).detach();
  model->set_fake_quant(FakeQuant::kNone);
  EXPECT_GT(test::largest_difference(joined, model->forward(input)), 1e-5);
  {
    const torch::NoGradGuard no_grad;
    model->embedding->weight.copy_(by_quant(model->embedding->weight, QuantBits::kInt8));
  }
  EXPECT_TRUE(torch::equal(joined, model->forward(input).detach()));
}

TEST(WeightPathTest, NoticesEveryChangeOfTheWeight) {
  torch::manual_seed(13);
  const torch::NoGradGuard no_grad;
  auto weight = torch::randn({4, 32});
  WeightPath path;
  path.set_mode(FakeQuant::kInt4);
  const auto first = path(weight, torch::kFloat32);
  EXPECT_EQ(first.data_ptr(), path(weight, torch::kFloat32).data_ptr());  // kept
  weight.mul_(3.0);
  EXPECT_TRUE(torch::equal(path(weight, torch::kFloat32), by_quant(weight, QuantBits::kInt4)));
  weight.set_data(torch::randn({4, 32}));
  EXPECT_TRUE(torch::equal(path(weight, torch::kFloat32), by_quant(weight, QuantBits::kInt4)));
  path.set_mode(FakeQuant::kInt8);
  EXPECT_TRUE(torch::equal(path(weight, torch::kFloat32), by_quant(weight, QuantBits::kInt8)));
  EXPECT_EQ(path(weight, torch::kBFloat16).scalar_type(), torch::kBFloat16);
}

}  // namespace
}  // namespace needle
