#include "needle/train/bench.h"

#include <cmath>

#include <gtest/gtest.h>

#include <ATen/record_function.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/train/flops.h"
#include "needle/train/loss.h"
#include "needle/train/profile.h"

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

// The figures of the released shape, worked out by hand.
TEST(FlopsTest, AreThoseOfTheEquations) {
  const ModelConfig model = train_bench_case("pre8").model;
  const auto flops_of = [&](const std::string& name) {
    return model_flops(model, work_of(train_bench_batch(train_bench_case(name), 1)));
  };
  const double padded = flops_of("pre8");
  EXPECT_NEAR(padded / (8.0 * 384.0), 94.37e6, 0.1e6);
  const double packed = flops_of("pack4");
  EXPECT_NEAR(packed / (4.0 * 1536.0), 88.08e6, 0.1e6);
  EXPECT_NEAR(muon_flops(model, 5), 272.46e9, 0.1e9);
}

TEST(ProfileTest, CountsOperationsAndTakesWhatIsInsideFromTheSelfTime) {
  const TemporaryFolder folder;
  Profile profile;
  {
    RECORD_USER_SCOPE("outer");
    const auto a = torch::ones({64, 64});
    for (int i = 0; i < 3; ++i) {
      a.mm(a);
    }
  }
  profile.stop();
  torch::ones({2}).mul(2.0);  // after the end: not counted
  double outer_total = 0.0, outer_self = 0.0;
  std::int64_t products = 0, later = 0;
  for (const ProfileRow& row : profile.rows()) {
    outer_total += row.name == "outer" ? row.total_ms : 0.0;
    outer_self += row.name == "outer" ? row.self_ms : 0.0;
    products += row.name == "aten::mm" ? row.calls : 0;
    later += row.name == "aten::mul" ? row.calls : 0;
  }
  EXPECT_EQ(products, 3);
  EXPECT_EQ(later, 0);
  EXPECT_GT(outer_total, outer_self);
  profile.write_chrome_trace(folder.path() / "trace.json");
  const Json trace = read_json_file(folder.path() / "trace.json");
  EXPECT_GE(trace.at("traceEvents").size(), 4u);
  EXPECT_EQ(trace["traceEvents"][0]["ph"], "X");
}

}  // namespace
}  // namespace needle::test
