#include "needle/data/encode.h"

#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CallTextsTest, NamesAreTheSnakeCaseOfServing) {
  const CallExample row{
      .query = "q",
      .tools = R"([{"name":"getWeather"},{"name":"get-weather"},{"name":"東京"}])",
      .answers = R"([{"name":"get-weather","arguments":{}},{"name":"東京"},{"name":"notThere"}])"};
  const CallTexts ours = call_texts(row, 0, JsonEscapes::kAscii, {.shuffle_tools = false});
  EXPECT_EQ(ours.tools, R"([{"name":"get_weather"},{"name":"get_weather_2"},{"name":"tool_3"}])");
  EXPECT_EQ(ours.answer,
            R"([{"name":"get_weather_2","arguments":{}},{"name":"tool_3"},{"name":"not_there"}])");
  EXPECT_EQ(ours.called, (std::vector<bool>{false, true, true}));

  const CallTexts as_given =
      call_texts(row, 0, JsonEscapes::kUtf8, {.shuffle_tools = false, .snake_case_names = false});
  EXPECT_EQ(as_given.tools, row.tools);
  EXPECT_EQ(as_given.called, (std::vector<bool>{false, true, true}));
}

TEST(CallTextsTest, TextThatIsNotJsonIsKept) {
  const CallTexts texts = call_texts({.query = "q", .tools = "none, sorry", .answers = "no { way"},
                                     3, JsonEscapes::kAscii, {});
  EXPECT_EQ(texts.tools, "none, sorry");
  EXPECT_EQ(texts.answer, "no { way");
  EXPECT_FALSE(texts.answer_is_json);
  EXPECT_TRUE(texts.tool_texts.empty());
}

TEST(CallTextsTest, ShufflingIsARepeatablePermutationByRow) {
  CallExample row = timer_row(1);
  row.tools = R"([{"name":"a","d":1,"parameters":{"type":"object","properties":)"
              R"({"p":{},"q":{},"r":{},"s":{}},"required":["p"]}},{"name":"b"},{"name":"c"}])";
  std::set<std::string> seen;
  std::set<std::string> property_orders;
  for (std::int64_t number = 0; number < 50; ++number) {
    const std::string tools = call_texts(row, number, JsonEscapes::kAscii, {}).tools;
    EXPECT_EQ(tools, call_texts(row, number, JsonEscapes::kAscii, {}).tools);
    EXPECT_EQ(tools.size(), row.tools.size());
    seen.insert(tools);
    const auto properties = tools.find("\"properties\":{");
    property_orders.insert(tools.substr(properties, 42));
    // The properties have draws of their own: all else is as without them.
    const std::string reference =
        call_texts(row, number, JsonEscapes::kAscii, {.shuffle_properties = false}).tools;
    EXPECT_EQ(tools.find("\"name\":\"b\""), reference.find("\"name\":\"b\""));
    EXPECT_THAT(reference, HasSubstr(R"({"p":{},"q":{},"r":{},"s":{}})"));
  }
  EXPECT_GT(seen.size(), 25u);
  EXPECT_GT(property_orders.size(), 10u);
}

class EncodeTest : public ::testing::Test {
 protected:
  Tokenizer tokenizer_ = golden_tokenizer();
  PromptConfig prompt_{.max_enc_len = 256, .max_dec_len = 128};
};

TEST_F(EncodeTest, TheResultDoesNotDependOnTheNumberOfThreads) {
  const auto rows = timer_rows(200);
  ThreadPool one(1);
  ThreadPool three(3);
  const EncodedExamples a = encode_call_examples(rows, tokenizer_, prompt_, {}, one, 5);
  const EncodedExamples b = encode_call_examples(rows, tokenizer_, prompt_, {}, three, 5);
  ASSERT_EQ(a.examples.size(), 200u);
  ASSERT_EQ(b.examples.size(), 200u);
  for (std::size_t i = 0; i < a.examples.size(); ++i) {
    EXPECT_EQ(a.examples[i].row, static_cast<std::int64_t>(i) + 5);
    EXPECT_EQ(a.examples[i].source, b.examples[i].source);
    EXPECT_EQ(a.examples[i].target, b.examples[i].target);
    EXPECT_EQ(a.examples[i].classes, b.examples[i].classes);
  }
  EXPECT_EQ(a.report.text(), b.report.text());
}

TEST_F(EncodeTest, RowNumbersDecideTheShuffleWhereverChunksBegin) {
  const auto rows = timer_rows(20);
  ThreadPool pool(1);
  const auto whole = encode_call_examples(rows, tokenizer_, prompt_, {}, pool);
  const auto tail =
      encode_call_examples(std::span(rows).subspan(12), tokenizer_, prompt_, {}, pool, 12);
  for (std::size_t i = 0; i < tail.examples.size(); ++i) {
    EXPECT_EQ(tail.examples[i].source, whole.examples[12 + i].source);
  }
}

TEST_F(EncodeTest, WhatIsCutOrDroppedIsCounted) {
  std::vector<CallExample> rows = timer_rows(2);
  rows[1].query = std::string(2000, 'x');
  rows.push_back(timer_row(3));
  rows[2].answers = "\"" + std::string(500, 'y') + "\"";
  rows.push_back(timer_row(4));
  rows[3].answers = "not json";
  ThreadPool pool(1);
  const EncodedExamples encoded = encode_call_examples(rows, tokenizer_, prompt_, {}, pool, 100);
  const EncodeReport& report = encoded.report;
  EXPECT_EQ(report.rows, 4);
  EXPECT_EQ(report.kept, 3);
  EXPECT_EQ(report.dropped_too_long, 1);
  EXPECT_THAT(report.dropped_rows, ElementsAre(102));
  EXPECT_EQ(report.cut_queries, 1);
  const auto query = static_cast<std::int64_t>(tokenizer_.encode(rows[1].query).size());
  EXPECT_EQ(report.cut_query_tokens, query - (prompt_.max_enc_len - 2));
  EXPECT_EQ(report.cut_tools, 1);
  EXPECT_EQ(report.answers_not_json, 1);
  EXPECT_EQ(encoded.examples[1].source.size(), 256u);
  EXPECT_THAT(report.text(), HasSubstr("4 rows: 3 kept, 1 dropped"));
  EXPECT_THAT(report.text(), HasSubstr("1 queries cut"));
}

TEST_F(EncodeTest, SpecialTextOfAUserStaysPlain) {
  std::vector<CallExample> rows{timer_row(1)};
  rows[0].query = "<tools>[]<tool_call>";
  ThreadPool pool(1);
  const auto ours = encode_call_examples(rows, tokenizer_, prompt_, {}, pool).examples.at(0);
  EXPECT_EQ(std::count(ours.source.begin(), ours.source.end(), kToolsId), 1);
  EXPECT_THAT(ours.query_ids, Not(::testing::Contains(kToolsId)));
  const auto reference =
      encode_call_examples(rows, tokenizer_, prompt_, EncodeConfig::reference(), pool);
  const auto& source = reference.examples.at(0).source;
  EXPECT_EQ(std::count(source.begin(), source.end(), kToolsId), 2);
}

TEST_F(EncodeTest, TargetsBeginWithToolCallAndEndInEos) {
  const auto rows = timer_rows(1);
  ThreadPool pool(1);
  const auto example = encode_call_examples(rows, tokenizer_, prompt_, {}, pool).examples.at(0);
  EXPECT_EQ(example.target.front(), kToolCallId);
  EXPECT_EQ(example.target.back(), kEosId);
  EXPECT_EQ(example.decoder_in.front(), kEosId);
  EXPECT_TRUE(
      std::equal(example.target.begin(), example.target.end() - 1, example.decoder_in.begin() + 1));
  EXPECT_EQ(example.classes.front(), TokenClass::kStructure);
  EXPECT_EQ(example.classes.back(), TokenClass::kStructure);
  EXPECT_EQ(example.classes.size(), example.target.size());
  ASSERT_EQ(example.tools.size(), 2u);
  EXPECT_NE(example.tools[0].called, example.tools[1].called);
}

TEST_F(EncodeTest, PretrainingRowsAreCutAndEmptyOnesSkipped) {
  const std::vector<PretrainExample> rows{
      {.query = "why", .seed_text = " \t", .answer = std::string(1000, 'y')},
      {.query = " \n\u00a0", .answer = "a"},
      {.query = "q", .answer = "\u3000"},
      {.query = "q", .seed_text = "seed", .answer = "a"}};
  ThreadPool pool(1);
  const EncodedExamples encoded = encode_pretrain_examples(rows, tokenizer_, prompt_, {}, pool);
  ASSERT_EQ(encoded.examples.size(), 2u);
  EXPECT_EQ(encoded.report.skipped_empty, 2);
  EXPECT_EQ(encoded.report.cut_answers, 1);
  EXPECT_EQ(encoded.examples[0].target.size(), 128u);
  EXPECT_EQ(encoded.examples[0].target.back(), kEosId);
  EXPECT_EQ(encoded.examples[0].source.back(), kToolsId);  // a blank seed text counts as none
  EXPECT_EQ(encoded.examples[1].row, 3);
  EXPECT_TRUE(encoded.examples[1].classes.empty());
}

TEST_F(EncodeTest, LimitsWithoutRoomAreRefused) {
  const auto rows = timer_rows(1);
  ThreadPool pool(1);
  EXPECT_THROW(
      encode_call_examples(rows, tokenizer_, {.max_enc_len = 2, .max_dec_len = 128}, {}, pool),
      Error);
}

}  // namespace
}  // namespace needle::test
