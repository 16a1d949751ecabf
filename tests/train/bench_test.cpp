#include "needle/train/bench.h"

#include <cmath>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/train/loss.h"

#include "tests/support/golden.h"

namespace needle::test {
namespace {

TEST(TrainBenchTest, ShapesAreTheNamedOnesAndAnotherNameIsRefused) {
  const TrainBenchCase packed = train_bench_case("pack4");
  const Batch batch = train_bench_batch(packed, 1);
  EXPECT_EQ(batch.source.size(), 4u * 1024u);
  EXPECT_EQ(batch.target_tokens(), 4 * 512);
  EXPECT_EQ(batch.source_segments.front(), 1);
  EXPECT_EQ(batch.source_segments.back(), 6);
  EXPECT_EQ(batch.decoder_segments.back(), 6);
  EXPECT_TRUE(train_bench_batch(train_bench_case("pre8"), 1).source_segments.empty());
  EXPECT_THROW(train_bench_case("pre9"), ConfigError);
}

TEST(TrainBenchTest, TheDumpedWeightsAndBatchGiveTheReportedLoss) {
  const TemporaryFolder folder;
  const TrainBenchResult result = train_bench({.config = "tiny",
                                               .steps = 1,
                                               .overrides = {"train.compute_dtype=float32"},
                                               .dump = folder.path()});
  EXPECT_GT(result.tokens_per_second, 0.0);
  Needle model(train_bench_case("tiny").model);
  load_model_parameters(model, folder.path() / "weights.safetensors");
  const NamedTensors batch = load_tensors(folder.path() / "batch.safetensors");
  const torch::NoGradGuard no_grad;
  const auto logits =
      model->forward({.source = batch.at("source"), .decoder_in = batch.at("decoder_in")});
  const auto loss = token_loss(logits, batch.at("target"), {}, {}).text_loss.item<double>();
  EXPECT_NEAR(result.loss, loss, 1e-5 * std::abs(loss));
}

}  // namespace
}  // namespace needle::test
