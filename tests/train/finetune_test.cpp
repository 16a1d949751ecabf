#include "needle/train/finetune.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/data/jsonl_reader.h"
#include "needle/eval/compare.h"
#include "needle/model/released_checkpoint.h"
#include "needle/train/finetune_data.h"
#include "needle/train/saved_model.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"
#include "tests/train/tiny_run.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::micro_finetuning;
using testing::HasSubstr;

class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

TEST(FinetuneIntegrationTest, TrainsEvaluatesAndBundles) {
  const test::TemporaryFolder folder;
  FinetuneOptions options = micro_finetuning(folder.path(), "scratch", 40, 2);
  const FinetuneResult scratch = finetune(options);
  EXPECT_FALSE(scratch.base.has_value());
  EXPECT_GT(scratch.test_examples, 0);
  EXPECT_EQ(scratch.finetuned.strict.examples(), scratch.test_examples);

  // Everything that the bundle promises is there and can be used.
  const SavedModel saved = load_saved_model(scratch.bundle);
  EXPECT_EQ(saved.model->config(), scratch.config.model);
  std::size_t rows = 0;
  for (const char* part : {"train.jsonl", "validation.jsonl", "test.jsonl"}) {
    rows += read_call_examples(scratch.bundle / part).size();
  }
  EXPECT_EQ(rows, 40U);
  EXPECT_EQ(parse_tools_text(read_file(scratch.bundle / "tools.json")).size(), 2U);
  EXPECT_TRUE(read_json_file(scratch.bundle / "report.json")["base"].is_null());
  EXPECT_THAT(read_file(scratch.bundle / "README.md"), HasSubstr("needle-run"));

  // On top of it: base and finetuned side by side, as text and as records.
  FinetuneOptions again = micro_finetuning(folder.path(), "again", 40, 1);
  again.checkpoint = scratch.bundle.string();
  std::vector<Json> records;
  again.on_record = [&](const Json& record) { records.push_back(record); };
  const FinetuneResult result = finetune(again);
  ASSERT_TRUE(result.base.has_value());
  EXPECT_EQ(result.base->strict.exact.hits,
            scratch.finetuned.strict.exact.hits);  // the same model, the same split
  EXPECT_THAT(result.table, HasSubstr("base"));
  EXPECT_THAT(result.table, HasSubstr("finetuned"));
  EXPECT_THAT(result.table, HasSubstr("get_weather"));
  EXPECT_THAT(read_file(result.bundle / "report.md"), HasSubstr("Base against finetuned"));
  std::vector<std::string> evaluated;
  for (const Json& record : records) {
    if (record["kind"] == "evaluation") {
      evaluated.push_back(record["model"].get<std::string>());
      EXPECT_TRUE(record["report"].is_object());
    }
  }
  EXPECT_EQ(evaluated, (std::vector<std::string>{"base", "finetuned"}));
}

TEST(FinetuneIntegrationTest, TheExportedEngineAnswersTheTestRows) {
  const test::TemporaryFolder folder;
  FinetuneOptions options = micro_finetuning(folder.path(), "engine", 40, 1);
  options.overrides.emplace_back("validate.generate_rows=0");
  int engines = 0;
  options.exported_engine = [&](const Needle&, const Tokenizer& tokenizer, const PromptConfig&) {
    ++engines;
    std::vector<TokenId> nothing = tokenizer.encode("[]");
    nothing.insert(nothing.begin(), kToolCallId);
    return std::make_shared<test::ScriptedEngine>(
        tokenizer.vocab_size(), [nothing](std::span<const TokenId>) { return nothing; });
  };
  const FinetuneResult result = finetune(options);
  EXPECT_EQ(engines, 1);
  EXPECT_EQ(result.finetuned.strict.parsed.hits, result.test_examples);
  const auto answers = read_predictions(folder.path() / "engine" / "finetuned_answers.jsonl");
  ASSERT_EQ(std::ssize(answers), result.test_examples);
  for (const SavedPrediction& answer : answers) {
    EXPECT_EQ(answer.text, "[]") << answer.query;
  }

  options = micro_finetuning(folder.path(), "model", 40, 1);
  options.overrides.emplace_back("validate.generate_with=model");
  options.exported_engine = [&](const Needle&, const Tokenizer&, const PromptConfig&) {
    ++engines;
    return std::shared_ptr<const Engine>();
  };
  finetune(options);
  EXPECT_EQ(engines, 1);
}

TEST(FinetuneIntegrationTest, StoppedAndResumedEndsWithTheSameModel) {
  const test::TemporaryFolder folder;
  const FinetuneResult whole = finetune(micro_finetuning(folder.path(), "whole", 30, 2));
  FinetuneOptions options = micro_finetuning(folder.path(), "parts", 30, 2);
  int asked = 0;
  options.should_stop = [&asked] { return ++asked == 3; };
  EXPECT_THROW(finetune(options), Interrupted);
  EXPECT_FALSE(fs::exists(folder / "parts/bundle"));
  options.should_stop = nullptr;
  options.resume = true;
  const FinetuneResult parts = finetune(options);
  EXPECT_EQ(sha256_file(whole.bundle / "model.safetensors"),
            sha256_file(parts.bundle / "model.safetensors"));
  EXPECT_EQ(test::timeless_metrics(folder / "whole"), test::timeless_metrics(folder / "parts"));
}

TEST(FinetuneIntegrationTest, ASingleRowTrainsAndNothingIsNan) {
  const test::TemporaryFolder folder;
  const FinetuneResult first = finetune(micro_finetuning(folder.path(), "first", 20, 1));
  FinetuneOptions options = micro_finetuning(folder.path(), "one", 1, 3);
  options.checkpoint = first.bundle.string();
  const FinetuneResult result = finetune(options);
  EXPECT_EQ(result.summary.steps, 3);
  EXPECT_TRUE(std::isfinite(result.summary.last_loss));
  EXPECT_EQ(result.test_examples, 1);
  for (const Json& record : read_metrics(folder / "one")) {
    for (const auto& [key, value] : record.items()) {
      EXPECT_FALSE(value.is_null()) << key << " is not a number in " << record.dump();
    }
    if (record["kind"] == "validation") {
      EXPECT_GT(record["perplexity"].get<double>(), 1.0);
    }
  }
}

TEST(FinetuneIntegrationTest, ReleasedWeightsAreFoundInTheCacheFolder) {
  const test::TemporaryFolder folder;
  const FinetuneResult first = finetune(micro_finetuning(folder.path(), "first", 20, 1));
  const SavedModel saved = load_saved_model(first.bundle);
  const Environment home("NEEDLE_HOME", (folder / "home").string());
  const Environment offline("HF_HUB_OFFLINE", "1");

  FinetuneOptions options = micro_finetuning(folder.path(), "released", 20, 1);
  options.checkpoint = "";
  options.dry_run = true;
  options.confirm = [](const std::string&) -> bool { throw Error("asked although offline"); };
  EXPECT_THAT(message_of<ConfigError>([&] { finetune(options); }), HasSubstr("--checkpoint none"));

  fs::create_directories(folder / "home/released");
  save_released_checkpoint(saved.model, folder / "home/released/needle.pkl");
  EXPECT_THAT(message_of<FileError>([&] { finetune(options); }), HasSubstr("--tokenizer"));
  fs::copy_file(first.bundle / "tokenizer.model", folder / "home/released/needle.model");
  const FinetuneResult plan = finetune(options);
  EXPECT_EQ(plan.config.model, saved.model->config());
  EXPECT_EQ(plan.config.optimizer.adam.peak_lr, 3e-5);  // the config that suits released weights

  // A tokenizer of another size does not belong to it.
  FinetuneOptions small = micro_finetuning(folder.path(), "small", 20, 1);
  small.model_config =
      test::write(folder / "smaller.json",
                  R"({"vocab_size":336,"d_model":32,"num_heads":2,"num_kv_heads":1,)"
                  R"("num_encoder_layers":1,"num_decoder_layers":1})")
          .string();
  small.overrides.push_back("train.max_steps=1");
  const FinetuneResult other = finetune(small);
  options.tokenizer = (other.bundle / "tokenizer.model").string();
  EXPECT_THAT(message_of<ConfigError>([&] { finetune(options); }),
              HasSubstr("belongs to another model"));
}

TEST(FinetuneDataTest, BadRowsAreNamedOrLeftOut) {
  const test::TemporaryFolder folder;
  const auto path = test::write(folder / "rows.jsonl",
                                test::call_rows(6) + "{\"query\": \"x\"\n" + test::call_rows(6));
  EXPECT_THAT(message_of<DataError>([&] { read_finetune_data(path, {}, false); }),
              HasSubstr("rows.jsonl:7"));
  const FinetuneData data = read_finetune_data(path, {}, true);
  EXPECT_EQ(data.train.size() + data.validation.size() + data.test.size(), 12U);

  test::write(path, R"({"query":"x","tools":"[{\"nam\":1}]","answers":"[]"})"
                    "\n");
  EXPECT_THAT(message_of<DataError>([&] { read_finetune_data(path, {}, false); }),
              HasSubstr("rows.jsonl:1"));
  test::write(path, "\n\n");
  EXPECT_THAT(message_of<DataError>([&] { read_finetune_data(path, {}, false); }),
              HasSubstr("no rows"));
}

TEST(FinetuneDataTest, ToolsAreCollectedOnce) {
  const test::TemporaryFolder folder;
  const auto path = test::write(folder / "rows.jsonl", test::call_rows(12));
  const FinetuneData data = read_finetune_data(path, {}, false);
  const std::vector<Tool> tools = parse_tools_text(collect_tools(data));
  ASSERT_EQ(tools.size(), 2U);
  EXPECT_EQ(tools[0].name, "get_weather");
  EXPECT_TRUE(tools[1].find_parameter("hour")->required);
}

}  // namespace
}  // namespace needle
