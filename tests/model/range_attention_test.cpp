#include "needle/model/range_attention.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_fixtures.h"
#include "tests/model/row_fixtures.h"

namespace needle::test {
namespace {

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
  EXPECT_GT(gradient_difference(nothing_like(exact), exact), 0.5);
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
