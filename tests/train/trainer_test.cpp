#include "needle/train/trainer.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/model/checkpoint.h"
#include "needle/train/run_setup.h"

#include "tests/support/golden.h"
#include "tests/train/tiny_run.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using testing::HasSubstr;

constexpr int kSpikeSteps = 24;

// Trainer itself, with a fault that can be put into the model between two steps.
class SpikeIntegrationTest : public testing::Test {
 protected:
  struct Faults {
    std::int64_t step = 0;                // after this step parameters are spoilt; 0: never
    std::int64_t rollbacks = 0;           // as long as there were no more roll-backs
    double factor = 30.0;                 // what they are multiplied with
    std::int64_t stop_after = 0;          // the run is asked to stop after so many steps of its
    std::int64_t bad_row = -1;            // a row number that the data does not have
    bool stop_at_rollback = false;        // or killed right after a roll-back
    bool validates = false;               // every 4 steps
    std::int64_t stop_in_validation = 0;  // so many validations are done, the next is stopped
    std::vector<std::string> settings{};
  };

  TrainSummary train(const std::string& name, const Faults& faults, bool resume = false) {
    PretrainOptions options = test::micro_pretraining(folder_.path(), name, kSpikeSteps);
    std::vector<std::string> settings = options.overrides;
    for (const char* setting :
         {"train.spike.min_steps=4", "train.spike.window=8", "train.spike.steps=2",
          "train.spike.loss_rise=0.2", "train.spike.lr_steps=6", "train.checkpoint_every=3",
          "train.validate_every=1000", "train.max_bad_steps=3"}) {
      settings.push_back(setting);
    }
    settings.insert(settings.end(), faults.settings.begin(), faults.settings.end());
    RunConfig config = load_run_config(options.config, settings);
    config.data.train.assign(options.data.begin(), options.data.end());
    config.output = options.output;
    const Tokenizer tokenizer = make_tokenizer(config, config.data.train, resume);
    config.model.vocab_size = tokenizer.vocab_size();
    RunData data = load_run_data(config, tokenizer);
    if (faults.bad_row >= 0) {
      data.train.rows.back() = faults.bad_row;
    }
    Needle model = make_model(config);
    place_model(model, config.train);
    const Trainer* running = nullptr;
    std::int64_t steps = 0, validations = 0;
    bool stopped = false;
    const auto validate = [&]() -> std::vector<Scalar> {
      if (faults.stop_in_validation > 0 && validations++ == faults.stop_in_validation) {
        stopped = true;
        throw Interrupted("in the middle");
      }
      return {{"score", model->embedding->weight.abs().sum().item<double>()}};
    };
    Trainer trainer(
        model, tokenizer, config, data.train,
        {.validate = faults.validates ? validate : std::function<std::vector<Scalar>()>(),
         .best_score = "score",
         .should_stop =
             [&] { return stopped || (faults.stop_after > 0 && ++steps >= faults.stop_after); },
         .on_record =
             [&](const Json& record) {
               if (record["kind"] == "train" && record["step"] == faults.step &&
                   running->state().rollbacks <= faults.rollbacks) {
                 const torch::NoGradGuard no_grad;
                 for (auto& [parameter, value] : named_parameters(model)) {
                   value.mul_(faults.factor);
                 }
               }
               if (record["kind"] == "rollback" && faults.stop_at_rollback) {
                 throw Error("killed");
               }
             }});
    running = &trainer;
    if (resume) {
      EXPECT_TRUE(trainer.resume());
    }
    return trainer.run();
  }

  std::vector<Json> rollbacks(const std::string& name) const {
    std::vector<Json> found;
    for (const Json& record : read_metrics(folder_ / name)) {
      if (record["kind"] == "rollback") {
        found.push_back(record);
      }
    }
    return found;
  }

  void expect_equal_runs(const std::string& a, const std::string& b) const {
    const fs::path last = format("checkpoints/step-{:06d}", kSpikeSteps);
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      EXPECT_EQ(sha256_file(folder_ / a / last / file), sha256_file(folder_ / b / last / file))
          << file;
    }
    Json states[2] = {read_json_file(folder_ / a / last / "state.json"),
                      read_json_file(folder_ / b / last / "state.json")};
    states[0].erase("seconds");
    states[1].erase("seconds");
    EXPECT_EQ(states[0].dump(), states[1].dump());
    EXPECT_EQ(test::timeless_metrics(folder_ / a), test::timeless_metrics(folder_ / b));
  }

  test::TemporaryFolder folder_;
};

TEST_F(SpikeIntegrationTest, ASpikeTakesTheRunBackAndItRecovers) {
  const TrainSummary calm = train("calm", {});
  EXPECT_EQ(calm.rollbacks, 0);
  // Parameters spoilt after step 13: steps 14 and 15 spike. The checkpoint of step 12 is good.
  const TrainSummary spiked = train("spiked", {.step = 13});
  EXPECT_EQ(spiked.rollbacks, 1);
  EXPECT_EQ(spiked.steps, kSpikeSteps);
  EXPECT_LT(spiked.last_loss, calm.last_loss + 0.5);

  const std::vector<Json> records = read_metrics(folder_ / "spiked");
  std::vector<std::int64_t> steps;
  std::vector<double> rates, losses, epochs;
  for (const Json& record : records) {
    steps.push_back(record["step"].get<std::int64_t>());
    if (record["kind"] == "train") {
      rates.push_back(record["adam_lr"].get<double>());
      losses.push_back(record["loss"].get<double>());
      epochs.push_back(record["epoch"].get<double>());
    }
  }
  // Steps 1 to 15, the roll-back to 12, 13 to 24.
  ASSERT_EQ(steps.size(), 15U + 1U + 12U);
  const Json& back = records[15];
  EXPECT_EQ(back["kind"], "rollback");
  EXPECT_EQ(back["step"], 12);
  EXPECT_EQ(back["from_step"], 15);
  EXPECT_EQ(back["lr_scale"], 0.5);
  EXPECT_EQ(back["lr_scale_until"], 18);
  EXPECT_THAT(back["reason"].get<std::string>(), HasSubstr("far above the usual"));
  EXPECT_EQ(steps[16], 13);
  EXPECT_GT(losses[14], losses[12] + 0.2);       // there was a spike
  EXPECT_LT(losses[15], losses[12] + 0.2);       // it is gone
  EXPECT_DOUBLE_EQ(rates[15], 0.5 * rates[12]);  // step 13 again, at half the rate
  EXPECT_DOUBLE_EQ(rates[19], 0.5 * rates[12]);  // step 17 (the 18th update) too
  EXPECT_DOUBLE_EQ(rates[21], rates[12]);        // step 19 no more
  EXPECT_GT(epochs[15], epochs[14]);             // data goes on behind the offending batches
  EXPECT_TRUE(fs::exists(folder_ / "spiked/loss.svg"));
}

TEST_F(SpikeIntegrationTest, ARunThatIsStoppedInAValidationValidatesFirstWhenItGoesOn) {
  const Faults whole{.validates = true, .settings = {"train.validate_every=4"}};
  train("whole", whole);
  Faults stopped = whole;
  stopped.stop_in_validation = 2;
  const std::string said = message_of<Interrupted>([&] { train("stopped", stopped); });
  EXPECT_THAT(said, HasSubstr("stopped after step 12 of"));
  EXPECT_TRUE(fs::exists(folder_ / "stopped/checkpoints/step-000012"));
  train("stopped", whole, /*resume=*/true);
  expect_equal_runs("whole", "stopped");
}

TEST_F(SpikeIntegrationTest, WhatTheReadersThreadThrowsEndsTheRun) {
  const std::string message = message_of<Error>([&] { train("unreadable", {.bad_row = 1000000}); });
  EXPECT_THAT(message, HasSubstr("1000000"));
  // Steps before the one with the bad row were taken.
  const std::vector<Json> records = read_metrics(folder_ / "unreadable");
  EXPECT_LT(records.size(), 15U);  // an epoch, of 54 rows
  for (const Json& record : records) {
    EXPECT_GE(record["data_wait_ms"].get<double>(), 0.0);
  }
}

TEST_F(SpikeIntegrationTest, EverythingAfterARollbackIsDeterministicAndResumable) {
  const Faults faults{.step = 13};
  train("whole", faults);
  ASSERT_EQ(rollbacks("whole").size(), 1U);
  train("again", faults);
  expect_equal_runs("whole", "again");

  // Stopped while a spike is suspected (14), just after the roll-back (15), and later (19, 22).
  for (const int stop : {14, 15, 19, 22}) {
    const std::string name = format("stopped{}", stop);
    Faults stopped = faults;
    stopped.stop_after = stop;
    EXPECT_THROW(train(name, stopped), Interrupted);
    train(name, faults, /*resume=*/true);
    expect_equal_runs("whole", name);
  }
  // Killed just after the roll-back: nothing on disk knows of it.
  Faults killed = faults;
  killed.stop_at_rollback = true;
  EXPECT_THAT(message_of<Error>([&] { train("killed", killed); }), HasSubstr("killed"));
  EXPECT_EQ(rollbacks("killed").size(), 1U);
  train("killed", faults, /*resume=*/true);
  expect_equal_runs("whole", "killed");
}

TEST_F(SpikeIntegrationTest, ACheckpointOfTheSpikeIsRemovedAndTheOneBeforeTaken) {
  // Spoilt after step 12, whose checkpoint is written spoilt: step 9 is the last good one.
  const TrainSummary summary = train("late", {.step = 12});
  ASSERT_EQ(rollbacks("late").size(), 1U);
  EXPECT_EQ(rollbacks("late")[0]["step"], 9);
  EXPECT_EQ(rollbacks("late")[0]["from_step"], 14);
  EXPECT_EQ(summary.steps, kSpikeSteps);
}

TEST_F(SpikeIntegrationTest, NumbersThatAreNotFiniteTakeTheRunBackToo) {
  const TrainSummary summary =
      train("nan", {.step = 13, .factor = std::numeric_limits<double>::infinity()});
  ASSERT_EQ(rollbacks("nan").size(), 1U);
  EXPECT_THAT(rollbacks("nan")[0]["reason"].get<std::string>(),
              HasSubstr("3 steps in a row had to be skipped"));
  EXPECT_EQ(rollbacks("nan")[0]["step"], 12);
  EXPECT_EQ(summary.skipped, 3);
  EXPECT_TRUE(std::isfinite(summary.last_loss));
}

TEST_F(SpikeIntegrationTest, RollbacksAreBoundedAndMultiplyTheReduction) {
  const Faults faults{.step = 13, .rollbacks = 100, .settings = {"train.spike.max_rollbacks=2"}};
  const std::string message = message_of<Error>([&] { train("bounded", faults); });
  EXPECT_THAT(message, HasSubstr("after 2 roll-backs (train.spike.max_rollbacks)"));
  EXPECT_THAT(message, HasSubstr("the checkpoint of step 12 is kept"));
  EXPECT_THAT(message, HasSubstr("far above the usual"));
  const std::vector<Json> records = rollbacks("bounded");
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[1]["lr_scale"], 0.25);
  std::vector<std::string> warnings;
  EXPECT_EQ(CheckpointFolder(folder_ / "bounded").newest_valid(warnings)->step, 12);
}

TEST_F(SpikeIntegrationTest, WithoutACheckpointASpikeIsSaidAndTheRunGoesOn) {
  const TrainSummary summary =
      train("none", {.step = 7, .settings = {"train.checkpoint_every=100"}});
  EXPECT_EQ(summary.rollbacks, 0);
  EXPECT_EQ(summary.steps, kSpikeSteps);
  Faults off{.step = 13, .settings = {"train.spike.enabled=false"}};
  EXPECT_EQ(train("off", off).rollbacks, 0);
}

TEST_F(SpikeIntegrationTest, ValidationAndCheckpointsWaitUntilTheLossIsAsUsual) {
  // One spike only, at the step whose checkpoint would be due; the third one would go back.
  const Faults faults{
      .step = 14,
      .settings = {"train.spike.steps=9", "train.max_bad_steps=100", "train.keep_checkpoints=20"}};
  Faults once = faults;
  once.factor = 1.0;
  train("waits", once);
  EXPECT_TRUE(fs::exists(folder_ / "waits/checkpoints/step-000015"));
  train("spoilt", faults);
  EXPECT_TRUE(fs::exists(folder_ / "spoilt/checkpoints/step-000012"));
  EXPECT_FALSE(fs::exists(folder_ / "spoilt/checkpoints/step-000015"));
  EXPECT_TRUE(fs::exists(folder_ / "spoilt/checkpoints/step-000024"));
}

}  // namespace
}  // namespace needle
