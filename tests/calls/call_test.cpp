#include "needle/calls/call.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

std::string error_of(std::string_view answers) {
  try {
    parse_calls_text(answers);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(CallTest, ReadsCallsInEveryForm) {
  const std::string call = R"({"name":"f","arguments":{"a":1}})";
  for (const std::string& text :
       {"[" + call + "]", call, std::string(R"([{"type":"function","function":)") + call + "}]",
        std::string(R"([{"name":"f","arguments":"{\"a\":1}"}])")}) {
    const auto calls = parse_calls_text(text);
    ASSERT_EQ(calls.size(), 1U) << text;
    EXPECT_EQ(write_compact(calls[0].to_json()), call) << text;
  }
  EXPECT_TRUE(parse_calls_text("[]").empty());
  EXPECT_EQ(write_compact(parse_calls_text(R"([{"name":"f"}])").at(0).arguments), "{}");
  EXPECT_EQ(parse_calls(JsonValue::string("[" + call + "]")).size(), 1U);
}

TEST(CallTest, ErrorsNameThePlace) {
  EXPECT_NE(error_of("[").find("answers: not JSON"), std::string::npos);
  EXPECT_EQ(error_of("3"), "answers: expected an array of calls, got 3");
  EXPECT_EQ(error_of(R"([{"name":"f"},5])"),
            "[1]: expected an object with a name and arguments, got 5");
  EXPECT_EQ(error_of(R"([{"name":"f","arguments":null}])"),
            "[0].arguments: expected an object, got null");
  EXPECT_EQ(error_of(R"([{"name":7,"arguments":{}}])"),
            R"([0]: expected an object with a name and arguments, got {"name":7,"arguments":{}})");
}

TEST(CallTest, CanonicalIgnoresKeyOrder) {
  const auto of = [](std::string_view text) { return canonical(parse_calls_text(text).at(0)); };
  EXPECT_EQ(of(R"({"name":"f","arguments":{"a":{"y":1,"x":2},"b":3}})"),
            of(R"({"arguments":{"b":3,"a":{"x":2,"y":1}},"name":"f"})"));
  EXPECT_NE(of(R"({"name":"f","arguments":{"a":5}})"), of(R"({"name":"f","arguments":{"a":5.0}})"));
}

}  // namespace
}  // namespace needle
