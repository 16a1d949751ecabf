#include "needle/model/fused_layer.h"

#include <limits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "needle/model/head_attention.h"
#include "needle/model/kernels/kernels.h"

#include "tests/model/model_fixtures.h"
#include "tests/model/row_fixtures.h"

namespace needle::test {
namespace {

class FusedLayerRowsTest : public testing::TestWithParam<bool> {
 protected:
  ModelConfig config_ = small_config();
  ModelInput input_ = GetParam() ? packed_input(config_) : padded_input(config_);
};

TEST_P(FusedLayerRowsTest, GivesTheValuesAndGradientsOfTheSpecification) {
  Needle model = random_model(config_, 1);
  const Pass exact = run(model, input_, AttentionKernel::kExact);
  const Pass fused = run(model, input_, AttentionKernel::kLayers);
  EXPECT_LT(largest_difference(fused.hidden, exact.hidden), 2e-5);
  EXPECT_LT(gradient_difference(fused, exact), 1e-4);
  EXPECT_GT(gradient_difference(nothing_like(exact), exact), 0.5);
}

TEST_P(FusedLayerRowsTest, QuantisedWeightsEnterTheProductsAndGradientsPassThem) {
  Needle model = random_model(config_, 1);
  const Pass plain = run(model, input_, AttentionKernel::kLayers);
  model->set_fake_quant(FakeQuant::kInt4, FakeQuant::kInt4);
  const Pass exact = run(model, input_, AttentionKernel::kExact);
  const Pass fused = run(model, input_, AttentionKernel::kLayers);
  EXPECT_LT(largest_difference(fused.hidden, exact.hidden), 2e-5);
  EXPECT_LT(gradient_difference(fused, exact), 1e-4);
  EXPECT_GT(largest_difference(fused.hidden, plain.hidden), 1e-3);
}

TEST_P(FusedLayerRowsTest, ComputingAgainGivesTheSameBits) {
  Needle model = random_model(config_, 1);
  const Pass kept = run(model, input_, AttentionKernel::kLayers);
  model->set_activation_checkpointing(true);
  const Pass again = run(model, input_, AttentionKernel::kLayers);
  EXPECT_EQ(largest_difference(again.hidden, kept.hidden), 0.0);
  EXPECT_EQ(gradient_difference(again, kept), 0.0);
}

// Rounding to 8 bits moves a product of n random terms by about 2^-9 of its size; layers and
// gradients add some of those up. Plain layers in bfloat16, which round the stream too, are
// farther.
TEST_P(FusedLayerRowsTest, Bfloat16FactorsStayNearerThanABfloat16Stream) {
  Needle model = random_model(config_, 1);
  const Pass exact = run(model, input_, AttentionKernel::kExact);
  model->set_compute_dtype(torch::kBFloat16);
  const Pass factors = run(model, input_, AttentionKernel::kLayers);
  const Pass stream = run(model, input_, AttentionKernel::kRanges);
  EXPECT_EQ(factors.hidden.scalar_type(), torch::kFloat32);
  const double moved = largest_difference(factors.hidden, exact.hidden);
  EXPECT_GT(moved, 1e-4);
  EXPECT_LT(moved, largest_difference(stream.hidden.to(torch::kFloat32), exact.hidden));
  EXPECT_LT(gradient_difference(factors, exact), 0.05);
}

TEST_P(FusedLayerRowsTest, DropoutTakesThePlainLayers) {
  Needle model = random_model(config_, 1);
  model->train();
  model->set_dropout_rate(0.5);
  torch::manual_seed(9);
  const auto dropped = run(model, input_, AttentionKernel::kLayers).hidden;
  torch::manual_seed(9);
  EXPECT_EQ(largest_difference(dropped, run(model, input_, AttentionKernel::kRanges).hidden), 0.0);
}

INSTANTIATE_TEST_SUITE_P(All, FusedLayerRowsTest, testing::Bool(),
                         [](const auto& row) { return row.param ? "Packed" : "Padded"; });

// Longer rows than a block of scores, heads that are no multiple of a vector.
// NEEDLE_ISA forces one instruction set on the whole program.
TEST(RowKernelsTest, TheEnginesNamesMeanTheNearestTable) {
  EXPECT_EQ(find_row_kernels("scalar"), &kGenericRowKernels);
  EXPECT_EQ(find_row_kernels("neon"), &kGenericRowKernels);
  EXPECT_EQ(find_row_kernels("avx512vnni"), find_row_kernels("avx512"));
  EXPECT_EQ(find_row_kernels("avx512amx"), find_row_kernels("avx512"));
  EXPECT_EQ(find_row_kernels("mmx"), nullptr);
}

TEST(HeadAttentionTest, LongRowsEqualTheSpecificationWithTheirGradients) {
  torch::manual_seed(1);
  for (const bool causal : {false, true}) {
    const auto leaf = [](const torch::Tensor& tensor) { return tensor.requires_grad_(); };
    const auto q = leaf(torch::randn({2, 4, 300, 10})), k = leaf(torch::randn({2, 2, 300, 10})),
               v = leaf(torch::randn({2, 2, 300, 10}));
    auto tokens = torch::ones({2, 300}, torch::kInt64);
    tokens[1].narrow(0, 170, 130).zero_();
    const auto ranges = *padding_ranges(300, tokens, 0, causal);
    const auto wanted = range_attention(q, k, v, ranges).transpose(1, 2).flatten(2);
    const auto grad = torch::randn(wanted.sizes());
    (wanted * grad).sum().backward();
    const torch::NoGradGuard no_grad;
    const HeadAttention attention = head_attention(q, k, v, ranges);
    EXPECT_LT(largest_difference(attention.attended, wanted), 1e-5);
    const HeadAttentionGrad grads =
        head_attention_backward(grad, attention.weights, q, k, v, ranges);
    EXPECT_LT(largest_difference(grads.q, q.grad()), 2e-5);
    EXPECT_LT(largest_difference(grads.k, k.grad()), 2e-5);
    EXPECT_LT(largest_difference(grads.v, v.grad()), 2e-5);
    EXPECT_GT(grads.k.abs().max().item<double>(), 0.1);
  }
}

// Factors of bfloat16 are off by 2^-9 at most, each. A score is a sum of D products of unit size
// over the root of D, so it moves by about 2^-9 * 2; a weight by that, and by its own rounding.
// What it attends to is a mean of values below 4, so it moves by less than 4 * 2^-9 * 4 = 0.03, a
// gradient by that for each of the few keys or queries that carry it.
TEST(HeadAttentionTest, Bfloat16FactorsStayNear) {
  torch::manual_seed(1);
  for (const bool causal : {false, true}) {
    for (const auto& [length, dim] : {std::pair{300, 10}, {64, 64}, {5, 32}}) {
      const auto q = torch::randn({2, 4, length, dim}), k = torch::randn({2, 2, length, dim}),
                 v = torch::randn({2, 2, length, dim});
      auto tokens = torch::ones({2, length}, torch::kInt64);
      tokens[1].narrow(0, length / 2, length - length / 2).zero_();
      const auto ranges = *padding_ranges(length, tokens, 0, causal);
      const HeadAttention exact = head_attention(q, k, v, ranges);
      const HeadAttention rounded = head_attention(q, k, v, ranges, torch::kBFloat16);
      EXPECT_EQ(rounded.attended.scalar_type(), torch::kBFloat16);
      EXPECT_LT(largest_difference(rounded.attended, exact.attended), 0.03);
      EXPECT_GT(largest_difference(rounded.attended, exact.attended), 1e-4);
      EXPECT_GT(exact.attended.abs().max().item<double>(), 1.0);
      const auto grad = torch::randn(exact.attended.sizes());
      const HeadAttentionGrad wanted =
          head_attention_backward(grad, exact.weights, q, k, v, ranges);
      const HeadAttentionGrad got = head_attention_backward(grad, rounded.weights, q, k, v, ranges);
      for (const auto& [near, far] :
           {std::pair{got.q, wanted.q}, {got.k, wanted.k}, {got.v, wanted.v}}) {
        EXPECT_LT(largest_difference(near, far), 0.02 * far.abs().max().item<double>());
        EXPECT_LT((near - far).norm().item<double>(), 0.008 * far.norm().item<double>());
      }
    }
  }
}

// Every table that this CPU has, against float64.
class RowKernelsTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = find_row_kernels(GetParam());
    if (kernels_ == nullptr) {
      GTEST_SKIP() << "this CPU has no " << GetParam();
    }
  }
  static std::uint16_t* bits_of(const torch::Tensor& rounded) {
    return reinterpret_cast<std::uint16_t*>(rounded.data_ptr<at::BFloat16>());
  }
  const RowKernels* kernels_ = nullptr;
};

TEST_P(RowKernelsTest, SoftmaxAndItsGradientAreThoseOfFloat64) {
  torch::manual_seed(2);
  const auto scores = torch::randn({7, 37}) * 8.0;
  const auto mask = torch::ones({7, 37}, torch::kBool).tril(5);
  const auto wide = scores.to(torch::kFloat64).masked_fill(~mask, -1e30).requires_grad_();
  const auto wanted = wide.softmax(1);
  const auto grad = torch::randn({7, 37});
  (wanted * grad).sum().backward();
  const ScoreBlock block{.rows = 7, .keys = 37, .causal = true, .first_row = 5};
  const auto weights = scores.clone(), scores_grad = grad.clone();
  kernels_->softmax(block, weights.data_ptr<float>());
  kernels_->softmax_backward(block, weights.const_data_ptr<float>(), scores_grad.data_ptr<float>());
  EXPECT_LT(largest_difference(weights, wanted.to(torch::kFloat32)), 4e-7);
  EXPECT_LT(largest_difference(scores_grad, wide.grad().to(torch::kFloat32)), 4e-6);
  EXPECT_GT(largest_difference(scores.softmax(1), wanted.to(torch::kFloat32)), 1e-2);
}

TEST_P(RowKernelsTest, NormAndItsGradientAreThoseOfFloat64) {
  torch::manual_seed(3);
  const auto x = torch::randn({5, 23}).requires_grad_(),
             scale = torch::randn({23}).requires_grad_();
  const auto wide = x.to(torch::kFloat64);
  const auto wanted =
      (1.0 + scale) * wide * torch::rsqrt(wide.square().mean(1, true) + kNormEpsilon);
  const auto grad = torch::randn({5, 23});
  (wanted * grad).sum().backward();
  const auto normed = torch::empty({5, 23}), inverse = torch::empty({5}),
             x_grad = torch::empty({5, 23}), scale_grad = torch::zeros({23});
  const auto rounded = torch::empty({5, 23}, torch::kBFloat16);
  NormForward task{.width = 23,
                   .x = x.const_data_ptr<float>(),
                   .scale = scale.const_data_ptr<float>(),
                   .normed = normed.data_ptr<float>(),
                   .inverse_rms = inverse.data_ptr<float>()};
  kernels_->norm_forward(task, 0, 5);
  task.rounded = bits_of(rounded);
  kernels_->norm_forward(task, 0, 5);
  EXPECT_TRUE(torch::equal(rounded, normed.to(torch::kBFloat16)));
  kernels_->norm_backward({.width = 23,
                           .x = x.const_data_ptr<float>(),
                           .scale = scale.const_data_ptr<float>(),
                           .inverse_rms = inverse.const_data_ptr<float>(),
                           .normed_grad = grad.const_data_ptr<float>(),
                           .through = nullptr,
                           .x_grad = x_grad.data_ptr<float>(),
                           .scale_grad = scale_grad.data_ptr<float>()},
                          0, 5);
  EXPECT_LT(largest_difference(normed, wanted.detach().to(torch::kFloat32)), 2e-6);
  EXPECT_LT(largest_difference(x_grad, x.grad()), 5e-6);
  EXPECT_LT(largest_difference(scale_grad, scale.grad()), 5e-6);
}

TEST_P(RowKernelsTest, GradientsOfHeadsAreRoundedAsTheyAreWritten) {
  torch::manual_seed(4);
  constexpr std::int64_t kRows = 6, kDim = 20, kWidth = (2 + 1 + 1) * kDim;
  const auto projected = torch::randn({kRows, kWidth}), inverse = torch::rand({kRows, 3}),
             scale = torch::randn({kDim}), cos = torch::rand({3, kDim / 2}),
             sin = torch::rand({3, kDim / 2}), q_grad = torch::randn({2, 2, 3, kDim}),
             k_grad = torch::randn({2, 1, 3, kDim}), v_grad = torch::randn({2, 1, 3, kDim}),
             sums = torch::zeros({2, kDim}), wide = torch::empty({kRows, kWidth});
  q_grad[0][1][2][3] = std::numeric_limits<float>::quiet_NaN();
  v_grad[1][0][1][4] = std::numeric_limits<float>::infinity();
  const auto rounded = torch::empty({kRows, kWidth}, torch::kBFloat16);
  HeadsBackward task{
      .layout = {.length = 3, .heads = 2, .kv_heads = 1, .dim = kDim, .stride = kWidth},
      .rope = {.cos = cos.const_data_ptr<float>(), .sin = sin.const_data_ptr<float>()},
      .projected = projected.const_data_ptr<float>(),
      .q_scale = scale.const_data_ptr<float>(),
      .k_scale = scale.const_data_ptr<float>(),
      .inverse_rms = inverse.const_data_ptr<float>(),
      .q_grad = q_grad.const_data_ptr<float>(),
      .k_grad = k_grad.const_data_ptr<float>(),
      .v_grad = v_grad.const_data_ptr<float>(),
      .projected_grad = wide.data_ptr<float>(),
      .q_scale_grad = sums.data_ptr<float>(),
      .k_scale_grad = sums.data_ptr<float>() + kDim};
  kernels_->heads_backward(task, 0, kRows);
  task.rounded_grad = bits_of(rounded);
  kernels_->heads_backward(task, 0, kRows);
  EXPECT_TRUE(torch::equal(rounded.isnan(), wide.isnan()));
  EXPECT_TRUE(rounded.isnan().any().item<bool>());
  EXPECT_TRUE(torch::equal(rounded.nan_to_num(0.0), wide.to(torch::kBFloat16).nan_to_num(0.0)));
}

INSTANTIATE_TEST_SUITE_P(All, RowKernelsTest, testing::Values("generic", "avx2", "avx512"),
                         [](const auto& isa) { return std::string(isa.param); });

}  // namespace
}  // namespace needle::test
