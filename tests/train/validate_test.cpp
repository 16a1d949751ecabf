#include "needle/train/validate.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/model/init.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"
#include "tests/train/tiny_run.h"
#include "tests/train/tiny_training.h"

namespace needle::test {
namespace {

using ::testing::HasSubstr;

class ValidateTest : public ::testing::Test {
 protected:
  ValidateTest() {
    ModelConfig config = tiny_config();
    config.vocab_size = tokenizer_.vocab_size();
    model_ = Needle(config);
    init_parameters(model_, InitMethod::kCopy, 3);
    for (int i = 0; i < 5; ++i) {
      data_.examples.push_back({.query = "play " + std::string(1, static_cast<char>('a' + i)),
                                .tools = R"([{"name":"play","parameters":{}}])",
                                .answers = R"([{"name":"play","arguments":{}}])"});
    }
  }

  // An engine that always answers rightly, which the untrained model does not.
  std::shared_ptr<const Engine> right_engine() {
    ++engines_;
    std::vector<TokenId> answer = tokenizer_.encode(data_.examples[0].answers);
    answer.insert(answer.begin(), kToolCallId);
    return std::make_shared<ScriptedEngine>(tokenizer_.vocab_size(),
                                            [answer](std::span<const TokenId>) { return answer; });
  }

  // The share of right answers.
  double exact_match(const ValidateConfig& config, const ExportedEngine& exported) {
    const auto scores = validate(model_, torch::kCPU, tokenizer_, {.max_enc_len = 96}, data_,
                                 config, nullptr, {}, exported);
    const auto found = std::ranges::find(scores, "exact_match", &Scalar::first);
    return found == scores.end() ? -1.0 : found->second;
  }

  ExportedEngine exported() {
    return [this](const Needle&, const Tokenizer&, const PromptConfig&) { return right_engine(); };
  }

  Tokenizer tokenizer_ = Tokenizer::load(golden("tokenizer/tiny.model"));
  Needle model_{nullptr};
  ValidationData data_;
  int engines_ = 0;
};

TEST_F(ValidateTest, TheExportedEngineAnswersWhereThereIsOne) {
  const ValidateConfig config{.max_gen_len = 40};
  EXPECT_EQ(exact_match(config, exported()), 1.0);
  EXPECT_EQ(exact_match(config, exported()), 1.0);
  EXPECT_EQ(engines_, 2) << "the weights have changed from one validation to the next";
  EXPECT_EQ(exact_match(config, {}), 0.0);
}

TEST_F(ValidateTest, LibTorchAnswersOtherQuantisationsAndOnRequest) {
  ValidateConfig config{.max_gen_len = 12};
  config.generate_with = GenerateWith::kModel;
  EXPECT_EQ(exact_match(config, exported()), 0.0);
  config.generate_with = GenerateWith::kAuto;
  config.generate_quant = FakeQuant::kInt8;
  EXPECT_EQ(exact_match(config, exported()), 0.0);
  EXPECT_EQ(engines_, 0);
}

TEST_F(ValidateTest, AnEngineThatCannotBeIsAnErrorThatSaysWhatToChoose) {
  ValidateConfig config{.max_gen_len = 12};
  config.generate_with = GenerateWith::kEngine;
  EXPECT_THAT(message_of<ConfigError>([&] { exact_match(config, {}); }),
              HasSubstr("choose model or auto"));
  config.generate_quant = FakeQuant::kNone;
  EXPECT_THAT(message_of<ConfigError>([&] { exact_match(config, exported()); }),
              HasSubstr("generate_quant must be int4"));
}

TEST_F(ValidateTest, AFailedExportEndsNoRun) {
  const ExportedEngine failing = [](const Needle&, const Tokenizer&,
                                    const PromptConfig&) -> std::shared_ptr<const Engine> {
    throw FileError("no space left");
  };
  EXPECT_EQ(exact_match({.max_gen_len = 12}, failing), 0.0);
}

}  // namespace
}  // namespace needle::test
