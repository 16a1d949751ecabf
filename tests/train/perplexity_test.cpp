#include "needle/train/perplexity.h"

#include <array>

#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/train/golden_case.h"
#include "tests/train/tiny_training.h"

namespace needle::test {
namespace {

constexpr std::array kPlain{FakeQuant::kNone};

TEST(PerplexityTest, OfAModelThatKnowsNothingIsTheSizeOfTheVocabulary) {
  Needle model(tiny_config());  // zeros: every id equally likely
  const auto report = measure_perplexity(model, torch::kCPU, std::array{tiny_batch(3, 1)}, kPlain);
  EXPECT_NEAR(report.perplexity.at(0), 40.0, 1e-4);
  EXPECT_EQ(report.tokens, tiny_batch(3, 1).target_tokens());
}

TEST(PerplexityTest, WeighsEveryTokenAlikeHoweverBatchesAreCut) {
  const Needle model = tiny_model();
  const Batch a = tiny_batch(1, 1), b = tiny_batch(4, 2);
  ASSERT_NE(a.target_tokens(), b.target_tokens());
  const auto of = [&](std::span<const Batch> batches) {
    return measure_perplexity(model, torch::kCPU, batches, kPlain);
  };
  const auto both = of(std::array{a, b});
  const auto first = of(std::array{a}), second = of(std::array{b});
  const double mean = (std::log(first.perplexity[0]) * static_cast<double>(first.tokens) +
                       std::log(second.perplexity[0]) * static_cast<double>(second.tokens)) /
                      static_cast<double>(both.tokens);
  EXPECT_NEAR(std::log(both.perplexity[0]), mean, 1e-6);
}

TEST(PerplexityTest, LeavesTheModelAsItWas) {
  Needle model = tiny_model(1, 0.5);
  model->train();
  const std::array modes{FakeQuant::kNone, FakeQuant::kInt4, FakeQuant::kNone};
  const auto report = measure_perplexity(model, torch::kCPU, std::array{tiny_batch(3, 1)}, modes);
  ASSERT_EQ(report.perplexity.size(), 3u);
  EXPECT_EQ(report.perplexity[0], report.perplexity[2]);  // no dropout
  EXPECT_NE(report.perplexity[0], report.perplexity[1]);
  EXPECT_TRUE(model->is_training());
  EXPECT_EQ(model->fake_quant(), FakeQuant::kNone);
  EXPECT_TRUE(torch::GradMode::is_enabled());
}

TEST(PerplexityTest, IsCappedAndRefusesNothingAtAll) {
  Needle model = tiny_model();
  {
    const torch::NoGradGuard no_grad;
    model->embedding->weight.mul_(1e4);  // sure of itself and wrong
  }
  const auto report = measure_perplexity(model, torch::kCPU, std::array{tiny_batch(3, 1)}, kPlain);
  EXPECT_DOUBLE_EQ(report.perplexity[0], std::exp(20.0));
  EXPECT_THROW(measure_perplexity(model, torch::kCPU, std::span<const Batch>(), kPlain), DataError);
  Batch padding = tiny_batch(1, 1);
  std::fill(padding.target.begin(), padding.target.end(), kPadId);
  EXPECT_THROW(measure_perplexity(model, torch::kCPU, std::array{padding}, kPlain), DataError);
}

TEST(PerplexityGoldenTest, IsTheReferencesPlainAndQuantized) {
  torch::set_num_threads(1);
  const Json wanted = read_json_file(golden("loss/loss.json")).at("perplexity_packed");
  const auto tensors = load_tensors(golden("loss/batches.safetensors"));
  const auto model = load_released_safetensors(
      golden("checkpoint/tiny_f32.safetensors"),
      golden_config(read_json_file(golden("checkpoint/tiny_config.json"))));
  const std::array batches{golden_batch(under(tensors, "post/"))};
  int cases = 0;
  for (const auto& [name, value] : wanted.items()) {
    if (!value.is_number()) {
      continue;
    }
    ++cases;
    const auto quantized = kFakeQuantNames.parse(name == "float" ? "none" : name);
    ASSERT_TRUE(quantized.has_value()) << name;
    const std::array mode{*quantized};
    const auto report = measure_perplexity(model, torch::kCPU, batches, mode);
    EXPECT_NEAR(report.perplexity[0], value.get<double>(), 2e-4 * value.get<double>()) << name;
  }
  EXPECT_GT(cases, 0);
}

}  // namespace
}  // namespace needle::test
