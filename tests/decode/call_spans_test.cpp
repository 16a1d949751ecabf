#include "needle/decode/call_spans.h"

#include <gtest/gtest.h>

namespace needle {
namespace {

std::string at(std::string_view text, TextRange range) {
  return std::string(text.substr(range.begin, range.end - range.begin));
}

TEST(CallSpansTest, FindsNamesKeysAndValues) {
  constexpr std::string_view kText =
      R"( [{"name":"a","arguments":{"x":"q\"}]","y":[1,{"z":2}]}}, {"arguments": {"k" : -5 }, "name" : "b"}])";
  const auto calls = locate_calls(kText);
  ASSERT_TRUE(calls);
  ASSERT_EQ(calls->size(), 2U);
  const CallSpan& first = (*calls)[0];
  EXPECT_EQ(first.name, "a");
  EXPECT_EQ(at(kText, first.name_text), "\"a\"");
  EXPECT_EQ(at(kText, first.all), R"({"name":"a","arguments":{"x":"q\"}]","y":[1,{"z":2}]}})");
  ASSERT_EQ(first.arguments.size(), 2U);
  EXPECT_EQ(at(kText, first.arguments[0].value), R"("q\"}]")");
  EXPECT_EQ(first.arguments[1].name, "y");
  EXPECT_EQ(at(kText, first.arguments[1].value), R"([1,{"z":2}])");
  const CallSpan& second = (*calls)[1];
  EXPECT_EQ(second.name, "b");
  ASSERT_EQ(second.arguments.size(), 1U);
  EXPECT_EQ(at(kText, second.arguments[0].key), "\"k\"");
  EXPECT_EQ(at(kText, second.arguments[0].value), "-5");
}

TEST(CallSpansTest, NoListOfCallsIsNothing) {
  EXPECT_TRUE(locate_calls("[]")->empty());
  for (const std::string_view text :
       {"", "{}", "[1]", "[{}]", R"([{"name":"a")", R"([{"name":"a","arguments":5}])",
        R"([[{"name":"a"}]])", R"([{"arguments":{}}])"}) {
    EXPECT_FALSE(locate_calls(text)) << text;
  }
}

}  // namespace
}  // namespace needle
