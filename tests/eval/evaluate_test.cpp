#include "needle/eval/evaluate.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/eval/report.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

constexpr std::string_view kTools =
    R"([{"name":"setTimer","parameters":{"minutes":{"type":"integer"}}}])";

std::string timer(int minutes) {
  return format(R"([{{"name":"setTimer","arguments":{{"minutes":{}}}}}])", minutes);
}

// Knows the number in the query, but takes 3 for 4.
test::ScriptedEngine number_engine() {
  return {tiny_tokenizer().vocab_size(), [](std::span<const TokenId> prompt) {
            const std::string text = tiny_tokenizer().decode(prompt);
            std::string number = text.substr(0, text.find(' '));
            if (number == "3") {
              number = "4";
            }
            std::vector<TokenId> ids = {kToolCallId};
            for (const TokenId id : tiny_tokenizer().encode(
                     R"([{"name":"set_timer","arguments":{"minutes":)" + number + "}}]")) {
              ids.push_back(id);
            }
            return ids;
          }};
}

std::vector<EvalCase> timer_cases() {
  std::vector<EvalCase> cases;
  for (int i = 1; i <= 6; ++i) {
    cases.push_back(
        {.query = format("{} minutes", i), .tools = std::string(kTools), .answers = timer(i)});
  }
  cases.push_back({.query = "7 apples", .tools = std::string(kTools), .answers = "[]"});
  return cases;
}

TEST(EvaluateTest, ScoresAModelInOrderWhateverTheThreads) {
  const auto engine = number_engine();
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const auto cases = timer_cases();
  for (const std::size_t threads : {1, 3}) {
    std::vector<std::size_t> progress;
    const CallReport report = evaluate_calls(
        caller, cases,
        {.threads = threads, .keep_failures = 1, .on_progress = [&](std::size_t done) {
           progress.push_back(done);
         }});
    EXPECT_EQ(report.strict.examples(), 7);
    EXPECT_EQ(report.strict.exact.hits, 5);
    EXPECT_EQ(report.strict.parsed.hits, 7);
    EXPECT_EQ(report.strict.right_tools.hits, 6);
    EXPECT_EQ(report.strict.false_calls.hits, 1);
    EXPECT_EQ(report.strict.tools.at("setTimer"), (ToolScore{5, 6}));
    EXPECT_EQ(report.loose.tools.at("set_timer"), (ToolScore{5, 6}));
    ASSERT_EQ(report.failures.size(), 1U);
    EXPECT_EQ(report.failures[0].index, 2U);
    EXPECT_EQ(report.failures[0].prediction, timer(4));
    EXPECT_EQ(report.failure_kinds.at("value_mismatch"), 1);
    EXPECT_EQ(report.failure_kinds.at("false_positive"), 1) << "counted, though not kept";
    EXPECT_EQ(report.by_bucket.at({CallPool::kSingle, 1}).exact.hits, 5);
    EXPECT_EQ(report.by_bucket.at({CallPool::kNone, 1}).exact.hits, 0);
    EXPECT_GT(report.speed.tokens, 7 * 5);
    EXPECT_GT(report.speed.tokens_per_second, 0);
    EXPECT_LE(report.speed.median_seconds, report.speed.p95_seconds);
    EXPECT_THAT(progress, ::testing::ElementsAre(1, 2, 3, 4, 5, 6, 7));
  }
}

TEST(EvaluateTest, CountsCutPromptsAndLongAnswers) {
  const auto engine = number_engine();
  const FunctionCaller caller(engine, tiny_tokenizer(), {.max_enc_len = 12});
  const CallReport report =
      evaluate_calls(caller, timer_cases(), {.max_gen_len = 4, .constrain = Constrain::kNone});
  EXPECT_EQ(report.cut_prompts, 7);
  EXPECT_EQ(report.length_limited, 7);
  EXPECT_EQ(report.strict.parsed.hits, 0);
}

TEST(EvaluateTest, NothingToEvaluateIsAnEmptyReport) {
  const auto engine = number_engine();
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const CallReport report = evaluate_calls(caller, {}, {});
  EXPECT_EQ(report.strict.examples(), 0);
  EXPECT_EQ(to_json(report).at("strict").at("exact_match").get<double>(), 0.0);
  EXPECT_THROW(score_predictions(timer_cases(), {}), Error);
}

TEST(ReportTest, TablesAndJsonCarryTheFigures) {
  const auto engine = number_engine();
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const auto cases = timer_cases();
  const CallReport good = evaluate_calls(caller, cases, {});
  const CallReport bad =
      evaluate_calls(caller, cases, {.max_gen_len = 3, .constrain = Constrain::kNone});
  const std::vector<NamedReport> reports = {{"base", &bad}, {"finetuned", &good}};

  const std::string text = figures_table(reports);
  EXPECT_THAT(text, HasSubstr("finetuned"));
  EXPECT_THAT(text, ::testing::ContainsRegex("exact match +0.0 % +71.4 %"));
  const std::string markdown = figures_table(reports, TableStyle::kMarkdown);
  EXPECT_THAT(markdown, ::testing::ContainsRegex("\\| exact match +\\| +0.0 % \\| +71.4 % \\|"));
  EXPECT_THAT(markdown, ::testing::ContainsRegex("\\| -+ \\| -+: \\| -+: \\|"));
  EXPECT_THAT(tools_table(reports), ::testing::ContainsRegex("setTimer +0/6 +5/6"));
  EXPECT_THAT(buckets_table(good), ::testing::ContainsRegex("single +1 +6 +83.3 %"));
  EXPECT_THAT(failures_text(good, 5), HasSubstr("value_mismatch:setTimer.minutes=4!=3"));
  EXPECT_EQ(failures_text({}, 5), "");

  const Json json = to_json(good);
  EXPECT_EQ(json.at("examples").get<int>(), 7);
  EXPECT_NEAR(json.at("strict").at("exact_match").get<double>(), 5.0 / 7, 1e-12);
  EXPECT_EQ(json.at("strict").at("per_tool").at("setTimer").at("correct").get<int>(), 5);
  EXPECT_EQ(json.at("failures").size(), 2U);
  EXPECT_EQ(json.at("buckets").size(), 2U);
}

}  // namespace
}  // namespace needle
