#include "needle/decode/retrieve.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::ElementsAre;

const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

// Points in the plane: the share of the letter "a" in a text decides the angle.
test::ScriptedEngine letter_engine(std::vector<std::size_t>* lengths = nullptr) {
  return {tiny_tokenizer().vocab_size(), [](auto) { return std::vector<TokenId>(); },
          [lengths](std::span<const TokenId> ids) {
            if (lengths != nullptr) {
              lengths->push_back(ids.size());
            }
            const std::string text = tiny_tokenizer().decode(ids);
            const double share = static_cast<double>(std::count(text.begin(), text.end(), 'a')) /
                                 static_cast<double>(std::max<std::size_t>(1, text.size()));
            return std::vector<float>{static_cast<float>(std::cos(share)),
                                      static_cast<float>(std::sin(share))};
          }};
}

TEST(RetrieveTest, RanksByCosineAndKeepsTheBest) {
  const auto engine = letter_engine();
  const std::vector<std::string> tools = {"xxxx", "aaaa", "aaxx", "xxxx"};
  const ToolIndex index(engine, tiny_tokenizer(), tools);
  const auto best = index.rank("aaaa", 2);
  ASSERT_EQ(best.size(), 2U);
  EXPECT_EQ(best[0].index, 1U);
  EXPECT_EQ(best[1].index, 2U);
  EXPECT_NEAR(best[0].score, 1.0, 1e-6);
  const auto all = index.rank("xxxx", 10);
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[0].index, 0U) << "of equal scores the lower index comes first";
  EXPECT_EQ(all[1].index, 3U);
  EXPECT_TRUE(index.rank("x", 0).empty());
}

TEST(RetrieveTest, WritesToolsCompactlyAndCutsThem) {
  std::vector<std::size_t> lengths;
  const auto engine = letter_engine(&lengths);
  const std::vector<std::string> tools = {R"({ "name" : "x" })", R"({"name":"x"})",
                                          std::string(3000, 'a')};
  const ToolIndex index(engine, tiny_tokenizer(), tools, {.max_tokens = 20});
  ASSERT_EQ(lengths.size(), 3U);
  EXPECT_EQ(lengths[0], lengths[1]);
  EXPECT_EQ(lengths[2], 20U);
  EXPECT_THROW(embed_text(engine, tiny_tokenizer(), "x", {.max_tokens = 0}), Error);
}

TEST(RetrieveTest, NamesAreWrittenAsInTraining) {
  const auto engine = letter_engine();
  const std::vector<std::string> tools = {R"({"name":"aAaA","description":"x"})"};
  const auto written = [&](bool snake_case) {
    return ToolIndex(engine, tiny_tokenizer(), tools, {.snake_case_names = snake_case})
        .rank(snake_case ? R"({"name":"a_aa_a","description":"x"})" : tools[0], 1)
        .front()
        .score;
  };
  EXPECT_NEAR(written(true), 1.0, 1e-6);
  EXPECT_NEAR(written(false), 1.0, 1e-6);
  const ToolIndex renamed(engine, tiny_tokenizer(), tools);
  EXPECT_LT(renamed.rank(tools[0], 1).front().score, 1.0 - 1e-5);
}

TEST(RetrieveTest, TakesToolsApart) {
  EXPECT_THAT(tool_texts(R"([{"name": "a", "parameters": {}}, {"name": "b", "parameters": {}}])"),
              ElementsAre(R"({"name":"a","parameters":{}})", R"({"name":"b","parameters":{}})"));
  EXPECT_THROW(tool_texts("nonsense"), DataError);
}

}  // namespace
}  // namespace needle
