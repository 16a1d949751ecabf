#include "needle/decode/confidence.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "needle/decode/generate.h"
#include "needle/decode/trace.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

std::vector<TokenId> answer_ids(const std::string& answer) {
  std::vector<TokenId> ids = {kToolCallId};
  for (const TokenId id : tiny_tokenizer().encode(answer)) {
    ids.push_back(id);
  }
  return ids;
}

TEST(TokenEndsTest, AreTheEndsOfEachTokensText) {
  const std::string text = "[{\"name\":\"caf\u00e9 \U0001F389\"}]";
  const std::vector<TokenId> ids = tiny_tokenizer().encode(text);
  const auto ends = token_ends(tiny_tokenizer(), ids);
  ASSERT_EQ(ends.size(), ids.size());
  EXPECT_EQ(ends.back(), tiny_tokenizer().decode(ids).size());
  EXPECT_TRUE(std::ranges::is_sorted(ends));
}

TEST(ConfidenceTest, GathersTokensByCallAndArgument) {
  const std::string answer = R"([{"name":"set_timer","arguments":{"minutes":5,"label":"tea"}}])";
  GeneratedTokens generated;
  generated.ids = answer_ids(answer);
  for (const TokenId id : generated.ids) {
    generated.steps.push_back({.id = id, .log_probability = std::log(0.9)});
  }
  generated.steps.push_back({.id = kEosId, .forced = true});
  generated.watched_log_probability = std::log(0.25);
  const auto count = static_cast<double>(generated.ids.size());
  const AnswerConfidence confidence =
      answer_confidence(tiny_tokenizer().decode(generated.ids),
                        token_ends(tiny_tokenizer(), generated.ids), generated);
  EXPECT_NEAR(confidence.probability, std::pow(0.9, count), 1e-12);
  EXPECT_NEAR(confidence.no_call, 0.25, 1e-12);
  EXPECT_FALSE(confidence.outside.has_value());
  ASSERT_EQ(confidence.calls.size(), 1U);
  const CallConfidence& call = confidence.calls[0];
  EXPECT_EQ(call.name, "set_timer");
  EXPECT_GT(call.name_probability, call.probability);
  EXPECT_GT(call.probability, confidence.probability) << "the marker is no part of it";
  ASSERT_EQ(call.arguments.size(), 2U);
  EXPECT_EQ(call.arguments[1].name, "label");
  for (const ArgumentConfidence& argument : call.arguments) {
    EXPECT_LE(argument.probability, 0.9 + 1e-12) << argument.name;
    EXPECT_GT(argument.probability, call.probability) << argument.name;
  }
}

TEST(ConfidenceTest, ACallCarriesItsConfidenceTraceAndOtherAnswers) {
  const test::ScriptedEngine engine(tiny_tokenizer().vocab_size(), [](auto) {
    return answer_ids(R"([{"name":"set_timer","arguments":{"minutes":5}}])");
  });
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  CallRequest request = {
      .query = "five minutes",
      .tools_json = R"([{"name":"setTimer","parameters":{"minutes":{"type":"integer"}}}])"};
  const CallResult plain = caller.call(request);
  EXPECT_FALSE(plain.confidence.has_value());
  EXPECT_TRUE(plain.steps.empty());
  for (const StepDetail detail : {StepDetail::kConfidence, StepDetail::kTrace}) {
    request.detail = detail;
    request.n_best = 2;
    const CallResult result = caller.call(request);
    EXPECT_EQ(result.text, plain.text);
    EXPECT_EQ(result.steps.size(), result.ids.size() + 1);
    ASSERT_TRUE(result.confidence.has_value());
    EXPECT_EQ(result.confidence->outside.has_value(), detail == StepDetail::kTrace);
    EXPECT_GT(result.confidence->no_call, 0);
    EXPECT_LT(result.confidence->no_call, 1);
    ASSERT_FALSE(result.n_best.empty());
    EXPECT_EQ(result.n_best[0].text, plain.text);
    const JsonValue json = to_json(*result.confidence, result, request.query);
    const JsonValue& argument = json.find("calls")->items().at(0).find("arguments")->items().at(0);
    EXPECT_EQ(write_compact(*argument.find("query_span")), "[0,4]") << "five";
    const JsonValue trace = trace_json(result, tiny_tokenizer());
    EXPECT_EQ(trace.items().size(), result.steps.size());
    EXPECT_EQ(trace.items()[0].find("piece")->as_string(), kToolCallPiece);
  }
}

}  // namespace
}  // namespace needle
