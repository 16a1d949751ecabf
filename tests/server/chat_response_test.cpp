#include "needle/server/chat_response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace needle {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ElementScannerTest, FindsElementsHoweverTheTextIsCut) {
  const std::string text =
      R"([{"name":"a","arguments":{"x":"]}\"{"}},{"name":"b","arguments":{}}])";
  for (std::size_t size = 1; size <= text.size(); ++size) {
    ElementScanner scanner;
    std::vector<std::string> found;
    for (std::size_t i = 0; i < text.size(); i += size) {
      for (std::string& element : scanner.add(text.substr(i, size))) {
        found.push_back(std::move(element));
      }
    }
    ASSERT_EQ(found.size(), 2U) << size;
    EXPECT_EQ(found[0], R"({"name":"a","arguments":{"x":"]}\"{"}})");
    EXPECT_EQ(found[1], R"({"name":"b","arguments":{}})");
  }
}

TEST(CompleteCallsTest, LeavesOutWhatWasCutOff) {
  EXPECT_EQ(complete_calls(R"([{"name":"a","arguments":{}},{"name":"b","argum)").size(), 1U);
  EXPECT_TRUE(complete_calls("hello").empty());
  EXPECT_TRUE(complete_calls("").empty());
}

TEST(StopPositionTest, IsTheFirstOfAll) {
  EXPECT_EQ(stop_position("abcabc", {"ca", "b"}), 1U);
  EXPECT_EQ(stop_position("abc", {"x"}), 3U);
}

TEST(CompletionTextTest, ProblemsAreThoseOfTheToolsThatWereLeft) {
  const auto problems = [](const ChatRequest& request) {
    CallResult result;
    result.text = R"([{"name":"a","arguments":{"x":"text"}},{"name":"b","arguments":{}}])";
    const JsonValue json =
        *parse_json_value(completion_text({}, request, result, {}, nullptr)).value;
    return write_compact(*json.find("needle")->find("problems"));
  };
  ToolReader reader({});
  std::string body =
      R"({"messages":[{"role":"user","content":"hi"}],"tools":[{"name":"a","parameters":{"type":"object","properties":{"x":{"type":"integer"}}}},{"name":"b"}])";
  const auto asked = [&](const std::string& choice) {
    return parse_chat_request(*parse_json_value(body + choice + "}").value, {}, reader);
  };
  const ChatRequest all = asked("");
  EXPECT_THAT(problems(all), HasSubstr("[0].arguments.x"));
  EXPECT_THAT(problems(all), Not(HasSubstr("[1]")));
  const ChatRequest one = asked(R"(,"tool_choice":{"type":"function","function":{"name":"a"}})");
  ASSERT_EQ(one.offered->tools.size(), 1U);
  EXPECT_EQ(one.offered->json, one.call.tools_json);
  EXPECT_THAT(problems(one), HasSubstr("[0].arguments.x"));
  EXPECT_THAT(problems(one), HasSubstr("[1]"));  // not offered
  ChatRequest fewer = all;                       // as a shelf leaves them out
  fewer.call.tools_json = R"([{"name":"b"}])";
  EXPECT_THAT(problems(fewer), HasSubstr("[0]"));
  EXPECT_THAT(problems(fewer), Not(HasSubstr("arguments.x")));
}

TEST(CompletionStreamTest, SendsEachCallOnceWithTheToolsOwnName) {
  ChatRequest request;
  request.call.tools_json = R"([{"name":"setAlarm"}])";
  CompletionStream stream({.id = "chatcmpl-1", .model = "m"}, request);
  const std::string answer = R"([{"name":"set_alarm","arguments":{}}])";
  EXPECT_EQ(stream.add(answer.substr(0, 20)), "");
  EXPECT_THAT(stream.add(answer.substr(20)), HasSubstr(R"("name":"setAlarm")"));
  CallResult result;
  result.text = R"([{"name":"setAlarm","arguments":{}}])";
  const std::string rest = stream.finish(result, {}, nullptr);
  EXPECT_THAT(rest, Not(HasSubstr("tool_calls\":[")));
  EXPECT_THAT(rest, HasSubstr(R"("finish_reason":"tool_calls")"));
  EXPECT_THAT(rest, ::testing::EndsWith("data: [DONE]\n\n"));
}

}  // namespace
}  // namespace needle
