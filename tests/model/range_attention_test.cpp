#include "needle/model/range_attention.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_fixtures.h"

namespace needle::test {
namespace {

// Two packed rows: padding at the end of the first, a segment of the answer without source (3), and
// one of the source without answer (4).
ModelInput packed_input(const ModelConfig& config) {
  torch::manual_seed(3);
  ModelInput input;
  input.source = random_tokens(config, 2, 9);
  input.decoder_in = random_tokens(config, 2, 7);
  input.source_segments =
      torch::tensor({{1, 1, 1, 1, 2, 2, 2, 0, 0}, {1, 1, 2, 2, 2, 2, 4, 4, 4}}, torch::kInt64);
  input.decoder_segments =
      torch::tensor({{1, 1, 1, 2, 2, 0, 0}, {1, 2, 2, 2, 3, 3, 3}}, torch::kInt64);
  return input;
}

// Ragged rows; the last is padding alone on the source side.
ModelInput padded_input(const ModelConfig& config) {
  torch::manual_seed(4);
  ModelInput input;
  input.source = random_tokens(config, 3, 8);
  input.decoder_in = random_tokens(config, 3, 6);
  input.source[1].narrow(0, 5, 3).fill_(config.pad_token_id);
  input.source[2].fill_(config.pad_token_id);
  input.decoder_in[1].narrow(0, 2, 4).fill_(config.pad_token_id);
  return input;
}

struct Pass {
  torch::Tensor hidden;
  std::vector<torch::Tensor> gradients;
};

Pass run(Needle& model, const ModelInput& input, AttentionKernel kernel) {
  model->zero_grad();
  model->set_attention_kernel(kernel);
  const auto hidden = model->hidden(input);
  torch::manual_seed(5);
  (hidden.to(torch::kFloat32) * torch::randn(hidden.sizes())).sum().backward();
  Pass pass{.hidden = hidden.detach(), .gradients = {}};
  for (const auto& parameter : model->parameters()) {
    pass.gradients.push_back(parameter.grad().defined() ? parameter.grad().clone()
                                                        : torch::zeros_like(parameter));
  }
  return pass;
}

// The largest difference of a gradient, relative to its largest value (at least 1).
double gradient_difference(const Pass& actual, const Pass& expected) {
  double worst = 0.0;
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    const auto size = expected.gradients[i].abs().max().item<double>();
    worst = std::max(worst, largest_difference(actual.gradients[i], expected.gradients[i]) /
                                std::max(1.0, size));
  }
  return worst;
}

class RangeAttentionRowsTest : public testing::TestWithParam<bool> {
 protected:
  ModelConfig config_ = small_config();
  ModelInput input_ = GetParam() ? packed_input(config_) : padded_input(config_);
};

TEST_P(RangeAttentionRowsTest, GivesTheValuesAndGradientsOfTheSpecification) {
  Needle model = random_model(config_, 1);
  const Pass exact = run(model, input_, AttentionKernel::kExact);
  const Pass ranges = run(model, input_, AttentionKernel::kRanges);
  EXPECT_LT(largest_difference(ranges.hidden, exact.hidden), 2e-5);
  EXPECT_LT(gradient_difference(ranges, exact), 1e-4);
  Pass nothing = exact;
  for (auto& gradient : nothing.gradients) {
    gradient = torch::zeros_like(gradient);
  }
  EXPECT_GT(gradient_difference(nothing, exact), 0.5);
}

TEST_P(RangeAttentionRowsTest, InBfloat16StaysAsNearAsTheSpecificationInBfloat16) {
  Needle model = random_model(config_, 1);
  const Pass wanted = run(model, input_, AttentionKernel::kExact);
  model->set_compute_dtype(torch::kBFloat16);
  const Pass exact = run(model, input_, AttentionKernel::kExact);
  const Pass ranges = run(model, input_, AttentionKernel::kRanges);
  const auto error = [&](const Pass& pass) {
    return (pass.hidden.to(torch::kFloat32) - wanted.hidden).norm().item<double>() /
           wanted.hidden.norm().item<double>();
  };
  EXPECT_LT(error(ranges), 2.0 * error(exact) + 0.004);  // 0.004: half a step of bfloat16
  EXPECT_GT(error(ranges), 0.0);
}

INSTANTIATE_TEST_SUITE_P(All, RangeAttentionRowsTest, testing::Bool(),
                         [](const auto& row) { return row.param ? "Packed" : "Padded"; });

TEST(RangeAttentionTest, OneWrongKeyOfARangeIsSeen) {
  torch::manual_seed(1);
  const auto q = torch::randn({1, 4, 5, 6}), k = torch::randn({1, 2, 5, 6}),
             v = torch::randn({1, 2, 5, 6});
  const auto tokens = torch::tensor({{7, 7, 7, 0, 0}}, torch::kInt64);
  const auto fewer = torch::tensor({{7, 7, 0, 0, 0}}, torch::kInt64);
  const auto attended = range_attention(q, k, v, *padding_ranges(5, tokens, 0, false));
  const auto other = range_attention(q, k, v, *padding_ranges(5, fewer, 0, false));
  EXPECT_GT(largest_difference(other, attended), 1e-2);
}

TEST(RangeAttentionTest, RowsThatAreNoRangesAreRefusedAndTakeTheMask) {
  const auto gap = torch::tensor({{7, 0, 7}}, torch::kInt64);
  EXPECT_FALSE(padding_ranges(3, gap, 0, false).has_value());
  const auto scattered = torch::tensor({{1, 2, 1}}, torch::kInt64);
  EXPECT_FALSE(segment_ranges(scattered, scattered, false).has_value());

  const ModelConfig config = small_config();
  Needle model = random_model(config, 2);
  ModelInput input = padded_input(config);
  input.source[0][2] = config.pad_token_id;
  const Pass fused = run(model, input, AttentionKernel::kFused);
  const Pass ranges = run(model, input, AttentionKernel::kRanges);
  EXPECT_EQ(largest_difference(ranges.hidden, fused.hidden), 0.0);
}

}  // namespace
}  // namespace needle::test
