#include "needle/server/chat_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/server/api_error.h"
#include "needle/server/body.h"

namespace needle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ChatRequest parse_whole(const std::string& body) {
  ToolReader tools({});
  return parse_chat_request(parse_body(body), {}, tools);
}

ChatRequest parse(const std::string& fields) {
  return parse_whole(
      R"({"messages":[{"role":"user","content":"hi"}],"tools":[{"name":"a"},{"name":"b"}])" +
      (fields.empty() ? "" : "," + fields) + "}");
}

std::string refusal(const std::string& body) {
  try {
    parse_whole(body);
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status(), 400);
    return error.what();
  }
  return "accepted";
}

std::string refused_field(const std::string& fields) {
  return refusal(R"({"messages":[{"role":"user","content":"hi"}],"tools":[{"name":"a"}],)" +
                 fields + "}");
}

TEST(ChatRequestTest, TheLastMessageIsTheQueryAndEarlierOnesAreListedBack) {
  const ChatRequest request = parse_whole(
      R"({"messages":[{"role":"system","content":"be brief"},)"
      R"({"role":"user","content":[{"type":"text","text":"wake "},{"type":"text","text":"me"}]}],)"
      R"("user":"u1"})");
  EXPECT_EQ(request.call.query, "wake me");
  EXPECT_EQ(request.call.tools_json, "[]");
  EXPECT_THAT(request.ignored, ElementsAre("messages[0] (\"system\")", "user"));
}

TEST(ChatRequestTest, AllowedToolsLeaveOnlyThose) {
  const ChatRequest request = parse(
      R"("tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"b"}}]}})");
  EXPECT_EQ(request.call.tools_json, R"([{"name":"b"}])");
}

TEST(ChatRequestTest, NoToolChoiceIsAskedOfTheModelWithNone) {
  EXPECT_TRUE(parse(R"("tool_choice":"none")").answer_nothing);
  EXPECT_FALSE(parse(R"("tool_choice":"auto")").answer_nothing);
}

TEST(ChatRequestTest, ToolChoiceAndParallelCallsBecomeLimitsOfTheGrammar) {
  EXPECT_EQ(parse(R"("tool_choice":"required")").call.calls.min_calls, 1);
  EXPECT_EQ(parse(R"("parallel_tool_calls":false)").call.calls.max_calls, 1);
  const ChatRequest one = parse(R"("tool_choice":{"type":"function","function":{"name":"a"}})");
  EXPECT_EQ(one.call.calls.min_calls, 1);
  EXPECT_EQ(one.call.tools_json, R"([{"name":"a"}])");
  EXPECT_EQ(parse("").call.calls.min_calls, 0);
  EXPECT_EQ(parse("").call.calls.max_calls, -1);
}

TEST(ChatRequestTest, AResponseSchemaTakesThePlaceOfCalls) {
  const std::string format =
      R"("response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}})";
  const ChatRequest request = parse(format + R"(,"tool_choice":"none")");
  EXPECT_EQ(request.call.response_schema, R"({"type":"object"})");
  EXPECT_TRUE(request.call.strict);
  EXPECT_FALSE(request.answer_nothing);
  EXPECT_THAT(refused_field(format), HasSubstr("either calls or a value"));
}

TEST(ChatRequestTest, WithoutTheGrammarNothingIsPromised) {
  EXPECT_THAT(refused_field(R"("tool_choice":"required","needle":{"constrain":"names"})"),
              HasSubstr("only \"grammar\""));
  EXPECT_THAT(refused_field(R"("parallel_tool_calls":false,"needle":{"constrain":"none"})"),
              HasSubstr("only \"grammar\""));
}

TEST(ChatRequestTest, WhatCannotBeHonouredIsRefusedByName) {
  for (const std::string field :
       {R"("tool_choice":"sometimes")",
        R"("tool_choice":{"type":"function","function":{"name":"z"}})",
        R"("response_format":{"type":"json_object"})", R"("n":0)", R"("n":2.5)", R"("n":17)",
        R"("stop":[1])", R"("stop":["a","b","c","d","e"])", R"("max_tokens":-1)", R"("seed":"x")",
        R"("logprobs":true)", R"("logit_bias":{"5":1})", R"("stream":"yes")",
        R"("needle":{"constrain":"tight"})"}) {
    EXPECT_THAT(refused_field(field), HasSubstr(field.substr(1, field.find('"', 1) - 1))) << field;
  }
  EXPECT_EQ(refused_field(R"("n":16,"stop":"x","seed":-5,"logprobs":false)"), "accepted");
}

TEST(ChatRequestTest, BadBodiesAreRefusedWithTheirPlace) {
  EXPECT_THAT(refusal(""), HasSubstr("empty"));
  EXPECT_THAT(refusal("{\"messages\":[}"), HasSubstr("line 1"));
  EXPECT_THAT(refusal("[]"), HasSubstr("an array"));
  EXPECT_THAT(refusal(std::string(5000, '[')), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("{\"messages\":\"\xff\"}"), HasSubstr("not JSON"));
  EXPECT_THAT(refusal(R"({"messages":[]})"), HasSubstr("messages"));
  EXPECT_THAT(refusal(R"({"messages":[{"role":"tool","content":"5"}]})"), HasSubstr("role"));
  EXPECT_THAT(refusal(R"({"messages":[{"role":"user","content":" "}]})"), HasSubstr("empty"));
  EXPECT_THAT(refused_field(R"("tools":[{"name":"a"},{"name":"a"}])"), HasSubstr("twice"));
  std::string many = R"({"messages":[{"role":"user","content":"x"}],"tools":[{"name":"t"})";
  for (int i = 0; i < 100'000; ++i) {
    many += ",{}";
  }
  EXPECT_THAT(refusal(many + "]}"), HasSubstr("100001 tools: at most 1000"));
}

}  // namespace
}  // namespace needle
