#include "needle/train/pretrain.h"

#include <algorithm>
#include <csignal>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "needle/core/error.h"
#include "needle/train/checkpoint_folder.h"
#include "needle/train/saved_model.h"
#include "needle/train/stop_signal.h"

#include "tests/support/golden.h"
#include "tests/train/tiny_run.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::micro_pretraining;
using testing::HasSubstr;

constexpr int kSteps = 8;

// Parameters, optimiser and place in the data byte for byte; metrics but for the times.
void expect_equal_runs(const fs::path& a, const fs::path& b) {
  const std::string last = "checkpoints/step-00000" + std::to_string(kSteps);
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "tokenizer.model"}) {
    EXPECT_EQ(sha256_file(a / last / file), sha256_file(b / last / file)) << file;
  }
  Json state_a = read_json_file(a / last / "state.json");
  Json state_b = read_json_file(b / last / "state.json");
  state_a.erase("seconds");
  state_b.erase("seconds");
  EXPECT_EQ(state_a.dump(), state_b.dump());
  const std::vector<Json> metrics_a = test::timeless_metrics(a);
  EXPECT_EQ(metrics_a, test::timeless_metrics(b));
  EXPECT_GE(metrics_a.size(), static_cast<std::size_t>(kSteps));
}

TEST(RunSetupTest, HeldOutRowsAreAtMostATenthAndNeverTrainedOn) {
  const HeldOut rows = hold_out_rows(100, 64, 7);
  EXPECT_EQ(rows.validation.size(), 10U);
  std::vector<std::int64_t> all = rows.train;
  all.insert(all.end(), rows.validation.begin(), rows.validation.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
  EXPECT_EQ(all.size(), 100U);
  EXPECT_EQ(hold_out_rows(100, 64, 7).validation, rows.validation);
  EXPECT_NE(hold_out_rows(100, 64, 8).validation, rows.validation);
  EXPECT_EQ(hold_out_rows(1000, 5, 7).validation.size(), 5U);
  EXPECT_TRUE(hold_out_rows(9, 64, 7).validation.empty());
}

TEST(RunSetupTest, ServedPromptsMayBeLongerThanPackedRows) {
  RunConfig config;
  config.model.max_seq_len = 1024;
  config.data.rows.prompt = {.max_enc_len = 448, .max_dec_len = 600};
  EXPECT_EQ(serving_prompt(config).max_enc_len, 1024);
  EXPECT_EQ(serving_prompt(config).max_dec_len, 600);
}

class PretrainIntegrationTest : public testing::Test {
 protected:
  fs::path run(const std::string& name) const { return folder_ / name; }
  void train_fully(const std::string& name) {
    pretrain(micro_pretraining(folder_.path(), name, kSteps));
  }
  PretrainOptions resuming(const std::string& name) const {
    PretrainOptions options = micro_pretraining(folder_.path(), name, kSteps);
    options.resume = true;
    return options;
  }
  test::TemporaryFolder folder_;
};

TEST_F(PretrainIntegrationTest, StoppedAndResumedIsBitEqualToOneRun) {
  train_fully("whole");
  PretrainOptions options = micro_pretraining(folder_.path(), "parts", kSteps);
  int asked = 0;
  options.should_stop = [&asked] { return ++asked == 3; };
  EXPECT_THAT(message_of<Interrupted>([&] { pretrain(options); }),
              HasSubstr("stopped after step 3 of 8"));
  EXPECT_TRUE(fs::exists(run("parts") / "checkpoints/step-000003"));
  options.resume = true;  // and stops again, two steps later
  asked = 1;
  EXPECT_THROW(pretrain(options), Interrupted);
  const PretrainResult result = pretrain(resuming("parts"));
  EXPECT_EQ(result.summary.steps, kSteps);
  expect_equal_runs(run("whole"), run("parts"));
  EXPECT_TRUE(fs::exists(run("parts") / "loss.svg"));

  // A finished run resumed has nothing left to do; another seed is another run.
  EXPECT_EQ(pretrain(resuming("parts")).summary.steps, kSteps);
  PretrainOptions other = micro_pretraining(folder_.path(), "other", kSteps);
  other.overrides.push_back("train.seed=43");
  pretrain(other);
  EXPECT_NE(test::timeless_metrics(run("whole")), test::timeless_metrics(run("other")));
}

TEST_F(PretrainIntegrationTest, KilledAndResumedIsBitEqualToOneRun) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const fs::path shared = fs::temp_directory_path() / "needle-test-killed-run";
  EXPECT_EXIT(
      {
        fs::remove_all(shared);
        fs::create_directories(shared);
        PretrainOptions options = micro_pretraining(shared, "killed", kSteps);
        options.on_record = [](const Json& record) {
          if (record.value("kind", "") == "train" && record.value("step", 0) == 5) {
            std::raise(SIGKILL);
          }
        };
        pretrain(options);
      },
      testing::KilledBySignal(SIGKILL), "");
  // The newest checkpoint is of step 4; the records of step 5 are written again.
  EXPECT_EQ(read_metrics(shared / "killed").back().value("step", 0), 5);
  PretrainOptions options = micro_pretraining(shared, "killed", kSteps);
  options.resume = true;
  pretrain(options);
  train_fully("whole");
  expect_equal_runs(run("whole"), shared / "killed");
  fs::remove_all(shared);
}

TEST_F(PretrainIntegrationTest, DamagedNewestCheckpointFallsBackToTheOneBefore) {
  train_fully("whole");
  train_fully("damaged");
  for (const char* step : {"8", "6"}) {
    const fs::path model =
        run("damaged") / ("checkpoints/step-00000" + std::string(step)) / "model.safetensors";
    fs::resize_file(model, fs::file_size(model) - 100);
  }
  pretrain(resuming("damaged"));
  expect_equal_runs(run("whole"), run("damaged"));
}

TEST_F(PretrainIntegrationTest, LossThatIsNotFiniteSkipsAndThenStopsWithTheLastGoodCheckpoint) {
  PretrainOptions options = micro_pretraining(folder_.path(), "nan", 40);
  options.overrides.push_back("optimizer.adam.peak_lr=1e37");
  options.overrides.push_back(
      "optimizer.schedule.warmup_steps=4");  // update 0 has rate 0: one good checkpoint at least
  options.overrides.push_back("train.checkpoint_every=1");
  options.overrides.push_back("train.max_bad_steps=3");
  options.overrides.push_back("train.spike.enabled=false");  // going back: trainer_test.cpp
  options.overrides.push_back("train.validate_every=1000");
  const std::string message = message_of<Error>([&] { pretrain(options); });
  EXPECT_THAT(message, HasSubstr("3 steps in a row had to be skipped"));
  EXPECT_THAT(message, HasSubstr("is kept"));
  const std::vector<Json> records = read_metrics(run("nan"));
  EXPECT_TRUE(records.back()["skipped"].get<bool>());
  EXPECT_EQ(records.back()["skipped_total"], 3);
  std::vector<std::string> warnings;
  EXPECT_TRUE(CheckpointFolder(run("nan")).newest_valid(warnings).has_value());
  EXPECT_TRUE(warnings.empty());
}

TEST_F(PretrainIntegrationTest, AFullDiskIsAnErrorAndTheOldCheckpointStays) {
  PretrainOptions options = micro_pretraining(folder_.path(), "full", kSteps);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_IGN);  // as run_main does: writing beyond the limit is an error then
  options.on_record = [&before](const Json& record) {
    if (record.value("kind", "") == "checkpoint" && record.value("step", 0) == 4) {
      const rlimit small{.rlim_cur = 32 * 1024, .rlim_max = before.rlim_max};
      setrlimit(RLIMIT_FSIZE, &small);
    }
  };
  EXPECT_THROW(pretrain(options), FileError);
  setrlimit(RLIMIT_FSIZE, &before);
  std::vector<std::string> warnings;
  EXPECT_EQ(CheckpointFolder(run("full")).newest_valid(warnings)->step, 4);
  EXPECT_TRUE(warnings.empty());
  pretrain(resuming("full"));  // space was freed
  train_fully("whole");
  expect_equal_runs(run("whole"), run("full"));
}

TEST_F(PretrainIntegrationTest, ResumingDemandsTheSameSettingsAndData) {
  PretrainOptions options = micro_pretraining(folder_.path(), "run", kSteps);
  options.should_stop = [] { return true; };
  EXPECT_THROW(pretrain(options), Interrupted);

  EXPECT_THAT(
      message_of<ConfigError>([&] { pretrain(micro_pretraining(folder_.path(), "run", kSteps)); }),
      HasSubstr("--resume"));

  PretrainOptions faster = resuming("run");
  faster.overrides.push_back("optimizer.adam.peak_lr=0.5");
  EXPECT_THAT(message_of<ConfigError>([&] { pretrain(faster); }),
              HasSubstr("optimizer.adam.peak_lr: was"));

  PretrainOptions changed = resuming("run");
  test::write(changed.data.front(), test::text_rows(61));
  EXPECT_THAT(message_of<DataError>([&] { pretrain(changed); }),
              HasSubstr("training data has changed"));

  PretrainOptions talkative = resuming("run");  // what only decides how much is written may differ
  talkative.overrides.push_back("train.log_every=4");
  EXPECT_EQ(pretrain(talkative).summary.steps, kSteps);
}

TEST_F(PretrainIntegrationTest, ATimeBudgetFixesTheStepsOnce) {
  PretrainOptions options = micro_pretraining(folder_.path(), "timed", 0);
  options.overrides.push_back("train.time_budget_s=0.5");
  options.overrides.push_back("train.validate_every=100000");
  options.overrides.push_back("train.checkpoint_every=100000");
  int asked = 0;
  options.should_stop = [&asked] { return ++asked == 2; };
  EXPECT_THROW(pretrain(options), Interrupted);
  const auto total =
      read_json_file(run("timed") / "checkpoints/step-000002/state.json")["total_steps"];
  EXPECT_GT(total.get<int>(), 2);
  options.resume = true;
  options.should_stop = nullptr;
  EXPECT_EQ(pretrain(options).summary.steps, total.get<int>());
}

TEST_F(PretrainIntegrationTest, ADryRunTellsAndWritesNothing) {
  PretrainOptions options = micro_pretraining(folder_.path(), "dry", kSteps);
  options.dry_run = true;
  const PretrainResult result = pretrain(options);
  EXPECT_EQ(result.plan.steps, kSteps);
  EXPECT_EQ(result.plan.examples, 60);
  EXPECT_EQ(result.plan.parameters, result.config.model.parameter_count());
  EXPECT_GT(result.plan.memory_bytes, 4 * result.plan.parameters);
  EXPECT_THAT(result.plan.text(), HasSubstr("60 examples"));
  EXPECT_FALSE(fs::exists(run("dry")));
}

TEST_F(PretrainIntegrationTest, AnEmptyDataSetAndNoDataAreClearErrors) {
  PretrainOptions options = micro_pretraining(folder_.path(), "empty", kSteps);
  test::write(options.data.front(), "");
  EXPECT_THROW(pretrain(options), DataError);
  options.data.clear();
  EXPECT_THROW(pretrain(options), Error);
  options.data = {(folder_ / "missing.jsonl").string()};
  EXPECT_THAT(message_of<FileError>([&] { pretrain(options); }), HasSubstr("missing.jsonl"));
}

TEST_F(PretrainIntegrationTest, OneRowTrainsWithoutNan) {
  PretrainOptions options = micro_pretraining(folder_.path(), "one", 4);
  options.overrides.push_back("tokenizer.file=" +
                              (folder_ / "run/checkpoints/step-000008/tokenizer.model").string());
  train_fully("run");
  test::write(options.data.front(), test::text_rows(1));
  const PretrainResult result = pretrain(options);
  EXPECT_TRUE(std::isfinite(result.summary.last_loss));
  EXPECT_EQ(result.plan.rows, 1);
}

TEST_F(PretrainIntegrationTest, CheckpointsAreLoadedWithTheirTokenizerOrRefused) {
  train_fully("run");
  const SavedModel saved = load_saved_model(run("run"));
  EXPECT_EQ(saved.tokenizer.vocab_size(), saved.model->config().vocab_size);
  EXPECT_EQ(saved.prompt.max_enc_len, 512);  // max_seq_len: longer than a packed row
  EXPECT_FALSE(saved.model->is_training());

  // Another tokenizer, another shape, no model.
  const fs::path checkpoint = saved.source;
  fs::remove(checkpoint / "manifest.json");
  const std::string tokenizer = read_file(checkpoint / "tokenizer.model");
  PretrainOptions other = micro_pretraining(folder_.path(), "other", 2);
  test::write(other.data.front(), test::call_rows(20) + test::text_rows(40));
  other.overrides.push_back("data.rows.skip_bad_rows=true");
  pretrain(other);
  fs::copy_file(run("other") / "checkpoints/step-000002/tokenizer.model",
                checkpoint / "tokenizer.model", fs::copy_options::overwrite_existing);
  EXPECT_THAT(message_of<ConfigError>([&] { load_saved_model(checkpoint); }),
              HasSubstr("tokenizer"));
  write_file_atomic(checkpoint / "tokenizer.model", tokenizer);
  Json description = read_json_file(checkpoint / "model.json");
  description["model"]["d_model"] = 64;
  write_json_file(checkpoint / "model.json", description);
  EXPECT_THAT(message_of<FormatError>([&] { load_saved_model(checkpoint); }),
              HasSubstr("the model expects"));
  EXPECT_THROW(load_saved_model(folder_ / "nothing"), FileError);
}

}  // namespace
}  // namespace needle
