#include "needle/train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"
#include "tests/train/tiny_run.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

template <typename Expected, typename Action>
std::string config_error_of(const Action& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the expected type was thrown";
  return "";
}

TEST(RunConfigTest, EveryShippedConfigLoadsByNameAndByPath) {
  int run_configs = 0;
  for (const std::string& name : embedded_config_names()) {
    const fs::path path = test::source_dir() / "configs" / (name + ".json");
    if (name.starts_with("model/")) {
      EXPECT_EQ(load_model_config(name), load_model_config(path.string())) << name;
      EXPECT_EQ(load_model_config(name), load_model_config(name.substr(6))) << name;
    } else {
      EXPECT_EQ(to_json(load_run_config(name, {})), to_json(load_run_config(path.string(), {})))
          << name;
      ++run_configs;
    }
  }
  EXPECT_GE(run_configs, 3);
}

TEST(RunConfigTest, ShapesHaveTheSizeThatTheirNamesPromise) {
  EXPECT_NEAR(static_cast<double>(load_model_config("released").parameter_count()), 26.3e6, 0.05e6);
  const auto small = static_cast<double>(load_model_config("small").parameter_count());
  EXPECT_TRUE(small > 4e6 && small < 8e6) << small;
  const auto tiny = static_cast<double>(load_model_config("tiny").parameter_count());
  EXPECT_TRUE(tiny > 1e6 && tiny < 2e6) << tiny;
}

TEST(RunConfigTest, ReleasedConfigsCarryTheReferencesValues) {
  const RunConfig pretraining = load_run_config("pretrain_released", {});
  EXPECT_EQ(pretraining.train.batch_size * pretraining.train.grad_accumulation, 128);
  EXPECT_EQ(pretraining.optimizer.adam.peak_lr, 3e-4);
  EXPECT_EQ(pretraining.init, InitMethod::kReference);
  EXPECT_FALSE(pretraining.data.rows.pack);
  const RunConfig finetuning = load_run_config("finetune_released", {});
  EXPECT_EQ(finetuning.train.batch_size * finetuning.train.grad_accumulation, 64);
  EXPECT_EQ(finetuning.optimizer.adam.peak_lr, 3e-5);
  EXPECT_EQ(finetuning.train.dropout, 0.1);
  EXPECT_EQ(finetuning.step.quant.every, 100);
}

TEST(RunConfigTest, OverridesApplyAndUnknownFieldsNameTheNearest) {
  const RunConfig config = load_run_config(
      "pretrain", std::vector<std::string>{"optimizer.adam.peak_lr=0.5", "data.train=[\"a.jsonl\"]",
                                           "init=reference"});
  EXPECT_EQ(config.optimizer.adam.peak_lr, 0.5);
  EXPECT_EQ(config.data.train, std::vector<fs::path>{"a.jsonl"});
  EXPECT_EQ(config.init, InitMethod::kReference);
  EXPECT_THAT(config_error_of<ConfigError>([] {
                load_run_config("pretrain", std::vector<std::string>{"train.batchsize=3"});
              }),
              HasSubstr("batch_size"));
  EXPECT_THAT(config_error_of<ConfigError>(
                  [] { load_run_config("pretrain", std::vector<std::string>{"train.epochs=0"}); }),
              HasSubstr("train.epochs"));
  EXPECT_THAT(config_error_of<ConfigError>([] { load_run_config("pretrian", {}); }),
              HasSubstr("\"pretrain\""));
}

TEST(RunConfigTest, FilesAreCheckedAndModelsAreFoundBesideThem) {
  const test::TemporaryFolder folder;
  test::micro_model(folder.path());
  const auto path =
      test::write(folder / "run.json", R"({"model": "micro.json", "train": {"epochs": 2}})");
  const RunConfig config = load_run_config(path.string(), {});
  EXPECT_EQ(config.model.d_model, 32);
  EXPECT_EQ(config.train.epochs, 2);
  test::write(path, R"({"modle": "micro.json"})");
  EXPECT_THAT(config_error_of<ConfigError>([&] { load_run_config(path.string(), {}); }),
              HasSubstr("model"));
  test::write(path, R"({"train": {"epochs": "two"}})");
  EXPECT_THAT(config_error_of<ConfigError>([&] { load_run_config(path.string(), {}); }),
              HasSubstr("train.epochs"));
  test::write(path, "{\n\"train\": \n}");
  EXPECT_THAT(config_error_of<FormatError>([&] { load_run_config(path.string(), {}); }),
              HasSubstr("3"));
}

TEST(RunConfigTest, DefaultsStandWhereTheConfigIsSilent) {
  RunConfig defaults;
  defaults.model = load_model_config("tiny");
  defaults.data.rows.prompt.json_escapes = JsonEscapes::kUtf8;
  const RunConfig config = load_run_config("finetune", {}, defaults);
  EXPECT_EQ(config.model, defaults.model);
  EXPECT_EQ(config.data.rows.prompt.json_escapes, JsonEscapes::kUtf8);
}

TEST(RunConfigTest, OnlyWhatDecidesNumbersMustStayTheSame) {
  const RunConfig saved = load_run_config("pretrain", {});
  RunConfig now = saved;
  now.output = "elsewhere";
  now.train.log_every = 7;
  now.data.train = {"moved.jsonl"};
  now.validate.generate_rows = 3;
  EXPECT_NO_THROW(check_same_run(saved, now));
  now.train.dropout = 0.5;
  now.data.rows.pack = false;
  const std::string message = config_error_of<ConfigError>([&] { check_same_run(saved, now); });
  EXPECT_THAT(message, HasSubstr("train.dropout: was"));
  EXPECT_THAT(message, HasSubstr("data.rows.pack: was true, now false"));
  EXPECT_THAT(message, Not(HasSubstr("log_every")));
}

TEST(RunConfigTest, TheDocumentedFieldsAreTheRealOnes) {
  EXPECT_EQ(read_file(test::source_dir() / "docs/config.md"), config_documentation())
      << "write it again: needle-train config --docs > docs/config.md";
}

}  // namespace
}  // namespace needle
