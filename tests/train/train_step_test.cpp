#include "needle/train/train_step.h"

#include <array>
#include <limits>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/train/device_batch.h"

#include "tests/train/golden_case.h"
#include "tests/train/tiny_training.h"

namespace needle::test {
namespace {

// From the first update on at full rate, without dropout.
struct TinyRun {
  explicit TinyRun(const TrainStepConfig& config = {}, double dropout_rate = 0.0,
                   std::uint64_t seed = 42)
      : model(tiny_model(1, dropout_rate)),
        optimizer(
            model,
            {.adam = {.peak_lr = 3e-3}, .schedule = {.final_ratio = 1.0, .decay_steps = 1'000'000}},
            100),
        step(model, optimizer, config, torch::kCPU, seed) {
    torch::set_num_threads(1);
  }

  Needle model;
  Optimizer optimizer;
  TrainStep step;
};

NamedTensors snapshot(const TinyRun& run) {
  NamedTensors all;
  for (const auto& [name, tensor] : named_parameters(run.model)) {
    all["parameter " + name] = tensor.detach().clone();
  }
  for (const auto& [name, tensor] : run.optimizer.state_dict()) {
    all["state " + name] = tensor.clone();
  }
  return all;
}

bool equal(const NamedTensors& a, const NamedTensors& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && torch::equal(x.second, y.second);
  });
}

TEST(TrainStepTest, ReportsTheLossOfTheModelBeforeTheUpdate) {
  TinyRun run;
  const Batch batch = tiny_batch(4, 1);
  const ClassWeights weights;
  const DeviceBatch on_device = to_device(batch, torch::kCPU, 40, &weights);
  const auto expected =
      token_loss(run.model->forward(on_device.input), on_device.target, on_device.weights, {});
  const auto report = run.step.run(5, std::array{batch});
  EXPECT_EQ(report.step, 5);
  EXPECT_NEAR(report.loss, expected.text_loss.item<double>(), 1e-5);
  EXPECT_NEAR(report.cross_entropy, expected.cross_entropy.item<double>(), 1e-5);
  EXPECT_NEAR(report.z, expected.z.item<double>(), 1e-7);
  EXPECT_EQ(report.target_tokens, batch.target_tokens());
  EXPECT_GT(report.source_tokens, 0);
  EXPECT_LT(report.source_tokens, 4 * 6);
  EXPECT_GT(report.grad_norm, 0.0);
  EXPECT_EQ(report.lr_muon, 0.02);
  EXPECT_EQ(report.lr_adam, 3e-3);
  EXPECT_FALSE(report.contrastive.has_value());
  EXPECT_FALSE(report.skipped);
  EXPECT_EQ(run.optimizer.updates(), 1);
}

TEST(TrainStepTest, LearnsATinyTask) {
  TinyRun run;
  const std::array batches{tiny_batch(16, 1), tiny_batch(16, 2)};
  double first = 0.0, last = 0.0;
  for (std::int64_t i = 0; i < 60; ++i) {
    const auto report = run.step.run(i, std::span(batches).subspan(i % 2, 1));
    first = i == 0 ? report.loss : first;
    last = report.loss;
  }
  EXPECT_LT(last, 0.6 * first);
}

TEST(TrainStepTest, LearnsInBfloat16WithFloat32Parameters) {
  TinyRun run;
  run.model->set_compute_dtype(torch::kBFloat16);
  const std::array batches{tiny_batch(16, 1)};
  const double first = run.step.run(0, batches).loss;
  for (std::int64_t i = 1; i < 20; ++i) {
    EXPECT_FALSE(run.step.run(i, batches).skipped);
  }
  EXPECT_LT(run.step.run(20, batches).loss, 0.9 * first);
  for (const auto& [name, tensor] : snapshot(run)) {
    EXPECT_NE(tensor.scalar_type(), torch::kBFloat16) << name;
  }
}

TEST(TrainStepTest, MicroBatchesEqualOneBatch) {
  // Rows of one batch in three uneven parts: gradients must agree although token counts differ.
  const Batch whole = tiny_batch(6, 3);
  std::vector<Batch> parts;
  std::int64_t start = 0;
  for (const std::int64_t rows : {1, 3, 2}) {
    Batch part{.rows = rows, .enc_len = whole.enc_len, .dec_len = whole.dec_len};
    const auto cut = [&](const auto& from, auto& to, std::int64_t length) {
      to.assign(from.begin() + start * length, from.begin() + (start + rows) * length);
    };
    cut(whole.source, part.source, part.enc_len);
    cut(whole.decoder_in, part.decoder_in, part.dec_len);
    cut(whole.target, part.target, part.dec_len);
    cut(whole.classes, part.classes, part.dec_len);
    parts.push_back(part);
    start += rows;
  }
  TinyRun one, several;
  const auto a = one.step.run(1, std::array{whole});
  const auto b = several.step.run(1, parts);
  EXPECT_NEAR(a.loss, b.loss, 1e-5);
  EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-5 * a.grad_norm);
  EXPECT_EQ(a.target_tokens, b.target_tokens);
  const auto others = named_parameters(several.model);
  for (const auto& [name, parameter] : named_parameters(one.model)) {
    ASSERT_EQ(parameter.grad().defined(), others.at(name).grad().defined());
    if (parameter.grad().defined()) {
      EXPECT_LE(largest(parameter.grad() - others.at(name).grad()),
                1e-5 * largest(parameter.grad()) + 1e-8)
          << name;
    }
  }
}

TEST(TrainStepTest, SameSeedAndStepGiveTheSameBitsAlsoWithDropout) {
  const std::array batches{tiny_batch(4, 1)};
  TinyRun a({}, 0.3), b({}, 0.3);
  torch::rand({7});  // whatever else was drawn in between
  for (std::int64_t i = 0; i < 3; ++i) {
    a.step.run(i, batches);
  }
  for (std::int64_t i = 0; i < 3; ++i) {
    torch::rand({i + 1});
    b.step.run(i, batches);
  }
  EXPECT_TRUE(equal(snapshot(a), snapshot(b)));
}

TEST(TrainStepTest, DropoutDependsOnSeedStepAndRank) {
  const std::array batches{tiny_batch(4, 1)};
  const auto loss = [&](std::int64_t step, std::uint64_t seed, std::uint64_t rank) {
    TinyRun run({}, 0.3);
    TrainStep train(run.model, run.optimizer, {}, torch::kCPU, seed, rank);
    return train.run(step, batches).loss;
  };
  const double base = loss(3, 1, 0);
  EXPECT_EQ(loss(3, 1, 0), base);
  EXPECT_NE(loss(4, 1, 0), base);
  EXPECT_NE(loss(3, 2, 0), base);
  EXPECT_NE(loss(3, 1, 1), base);
}

TEST(TrainStepTest, SkipsAStepWhoseLossIsNotFinite) {
  TinyRun run;
  run.step.run(0, std::array{tiny_batch(4, 1)});
  {
    const torch::NoGradGuard no_grad;
    run.model->embedding->weight[39].fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const auto before = snapshot(run);
  Batch batch = tiny_batch(4, 1);
  const auto report = run.step.run(1, std::array{batch});
  EXPECT_TRUE(report.skipped);
  EXPECT_NE(report.skip_reason.find("loss is nan"), std::string::npos) << report.skip_reason;
  EXPECT_EQ(run.optimizer.updates(), 1);
  for (const auto& [name, tensor] : snapshot(run)) {
    EXPECT_TRUE(torch::allclose(tensor, before.at(name), 0.0, 0.0, /*equal_nan=*/true)) << name;
  }
  for (const auto& [name, parameter] : named_parameters(run.model)) {
    EXPECT_FALSE(parameter.grad().defined()) << name;
  }
}

TEST(TrainStepTest, SkipsAStepWhoseGradientOverflows) {
  TinyRun run;
  TrainStepConfig config;  // a finite loss of 4e37, gradients whose squares are infinite
  config.loss.class_weights = {1e37, 1e37, 1e37, 1e37};
  TrainStep step(run.model, run.optimizer, config, torch::kCPU, 42);
  Batch batch = tiny_batch(4, 1);
  const auto before = snapshot(run);
  const auto report = step.run(1, std::array{batch});
  ASSERT_TRUE(report.skipped);
  EXPECT_TRUE(std::isfinite(report.loss));
  EXPECT_NE(report.skip_reason.find("gradient norm is infinite"), std::string::npos)
      << report.skip_reason;
  EXPECT_TRUE(equal(snapshot(run), before));
  const auto next = run.step.run(2, std::array{batch});  // the run goes on
  EXPECT_FALSE(next.skipped);
  EXPECT_FALSE(equal(snapshot(run), before));
}

TEST(TrainStepTest, CadencesSpareStepZero) {
  TrainStepConfig config{.quant = {.every = 3}, .contrastive_every = 4};
  const TinyRun run(config);
  for (const std::int64_t step : {0, 1, 2, 3, 4, 6, 8, 12}) {
    EXPECT_EQ(run.step.is_quantized_step(step), step > 0 && step % 3 == 0) << step;
    EXPECT_EQ(run.step.is_contrastive_step(step), step > 0 && step % 4 == 0) << step;
  }
  const TinyRun never({.quant = {.every = 0}, .contrastive_every = 0});
  EXPECT_FALSE(never.step.is_quantized_step(100));
  EXPECT_FALSE(never.step.is_contrastive_step(1000));
  const TinyRun always({.quant = {.every = 1}});
  EXPECT_TRUE(always.step.is_quantized_step(0));
}

TEST(TrainStepTest, QuantizedStepsDifferAndLeaveTheModelPlain) {
  const std::array batches{tiny_batch(4, 1)};
  TinyRun plain({.quant = {.every = 0}}), int4({.quant = {.every = 2}});
  TinyRun embedding({.quant = {.every = 2, .embedding = FakeQuant::kInt4}});
  const double a = plain.step.run(2, batches).loss;
  const auto report = int4.step.run(2, batches);
  const double c = embedding.step.run(2, batches).loss;
  EXPECT_TRUE(report.quantized);
  EXPECT_NE(report.loss, a);
  EXPECT_NE(c, report.loss);
  EXPECT_EQ(int4.model->fake_quant(), FakeQuant::kNone);
  EXPECT_EQ(embedding.model->embedding_fake_quant(), FakeQuant::kNone);
}

TEST(TrainStepTest, ContrastiveStepsTrainTheHeadAndOthersLeaveItAlone) {
  const std::array batches{tiny_batch(4, 1)};
  const ContrastiveBatch pairs = tiny_pairs(4, 1);
  TinyRun run({.quant = {.every = 0}, .contrastive_every = 2});
  const auto head = [&] { return run.model->contrastive_head->proj->weight.detach().clone(); };
  const auto start = head();
  const auto off = run.step.run(1, batches, &pairs);
  EXPECT_FALSE(off.contrastive.has_value());
  EXPECT_TRUE(torch::equal(head(), start));
  const auto on = run.step.run(2, batches, &pairs);
  ASSERT_TRUE(on.contrastive.has_value());
  EXPECT_GT(*on.contrastive, 0.0);
  EXPECT_NEAR(on.loss, on.cross_entropy + on.z, 1e-5);  // reported without it
  EXPECT_FALSE(torch::equal(head(), start));
  const auto without = run.step.run(4, batches);  // no pairs to be had
  EXPECT_FALSE(without.contrastive.has_value());
}

TEST(TrainStepTest, ABatchOfPaddingTrainsNothingButZ) {
  TinyRun run;
  Batch batch = tiny_batch(2, 1);
  std::fill(batch.target.begin(), batch.target.end(), kPadId);
  const auto report = run.step.run(1, std::array{batch});
  EXPECT_FALSE(report.skipped);
  EXPECT_EQ(report.cross_entropy, 0.0);
  EXPECT_EQ(report.target_tokens, 0);
}

TEST(TrainStepTest, RefusesSettingsOutOfRangeAndNoBatch) {
  EXPECT_THROW(TinyRun({.quant = {.every = -1}}), ConfigError);
  EXPECT_THROW(TinyRun({.contrastive_every = -5}), ConfigError);
  EXPECT_THROW(TinyRun({.loss = {.z_loss = -1.0}}), ConfigError);
  TinyRun run;
  EXPECT_THROW(run.step.run(0, {}), Error);
}

}  // namespace
}  // namespace needle::test
