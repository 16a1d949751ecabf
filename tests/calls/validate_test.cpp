#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/call.h"

namespace needle {
namespace {

constexpr std::string_view kTools = R"([
  {"name":"set_timer","parameters":{"minutes":{"type":"integer","required":true,"minimum":1,"maximum":60},
    "label":{"type":"string","maxLength":5},"loud":{"type":"bool"},"mode":{"type":"string","enum":["soft","hard"]}}},
  {"name":"book","parameters":{"type":"dict","properties":{
    "price":{"type":"float","exclusiveMinimum":0},
    "dates":{"type":"tuple","items":{"type":"string"},"minItems":2,"maxItems":3},
    "guest":{"type":"dict","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name"]},
    "note":{"anyOf":[{"type":"string"},{"type":"null"}]},
    "kind":{"const":"room"},"free":{}},"required":["price"]}},
  {"name":"open","parameters":{"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":true}}
])";

std::vector<std::string> problems(std::string_view calls) {
  const auto tools = parse_tools_text(kTools);
  std::vector<std::string> texts;
  for (const CallProblem& problem : validate_calls(parse_calls_text(calls), tools)) {
    texts.push_back(problem.path + ": " + problem.message);
  }
  return texts;
}

using Texts = std::vector<std::string>;

TEST(ValidateTest, AcceptsGoodCalls) {
  for (
      const char* calls : {
          "[]",
          R"([{"name":"set_timer","arguments":{"minutes":5}}])",
          R"([{"name":"set_timer","arguments":{"minutes":60,"label":"äöüäö","loud":true,"mode":"soft"}}])",
          R"([{"name":"set_timer","arguments":{"minutes":5.0}}])",
          R"([{"name":"book","arguments":{"price":1,"dates":["a","b"],"guest":{"name":"x","age":3},"note":null,"kind":"room","free":[{}]}}])",
          R"([{"name":"open","arguments":{"a":"x","b":1}}])",
      }) {
    EXPECT_EQ(problems(calls), Texts{}) << calls;
  }
}

TEST(ValidateTest, NamesEveryProblem) {
  const std::vector<std::pair<std::string, Texts>> cases = {
      {R"([{"name":"set_timr","arguments":{}}])",
       {"[0].name: unknown tool 'set_timr'; did you mean 'set_timer'?"}},
      {R"([{"name":"set_timer","arguments":{}}])",
       {"[0].arguments.minutes: required, but missing"}},
      {R"([{"name":"set_timer","arguments":{"minutes":5,"lable":"x"}}])",
       {"[0].arguments.lable: 'set_timer' has no such parameter; did you mean 'label'?"}},
      {R"([{"name":"set_timer","arguments":{"minutes":"5"}}])",
       {"[0].arguments.minutes: expected an integer, got \"5\""}},
      {R"([{"name":"set_timer","arguments":{"minutes":5.5}}])",
       {"[0].arguments.minutes: expected an integer, got 5.5"}},
      {R"([{"name":"set_timer","arguments":{"minutes":0}}])",
       {"[0].arguments.minutes: 0 is below the minimum 1"}},
      {R"([{"name":"set_timer","arguments":{"minutes":61,"label":"longer"}}])",
       {"[0].arguments.minutes: 61 is above the maximum 60",
        "[0].arguments.label: 6 characters, at most 5 expected"}},
      {R"([{"name":"set_timer","arguments":{"minutes":1,"mode":"loud","loud":1}}])",
       {"[0].arguments.mode: expected one of [\"soft\",\"hard\"], got \"loud\"",
        "[0].arguments.loud: expected a boolean, got 1"}},
      {R"([{"name":"set_timer","arguments":{"minutes":1}},{"name":"book","arguments":{"price":0}}])",
       {"[1].arguments.price: 0 is not above 0"}},
      {R"([{"name":"book","arguments":{"price":NaN}}])",
       {"[0].arguments.price: expected a number, got NaN"}},
      {R"([{"name":"book","arguments":{"price":1,"dates":[1]}}])",
       {"[0].arguments.dates: 1 items, at least 2 expected",
        "[0].arguments.dates[0]: expected a string, got 1"}},
      {R"([{"name":"book","arguments":{"price":1,"guest":{"age":"x","size":1}}}])",
       {"[0].arguments.guest.age: expected an integer, got \"x\"",
        "[0].arguments.guest.size: unknown key",
        "[0].arguments.guest.name: required, but missing"}},
      {R"([{"name":"book","arguments":{"price":1,"note":7,"kind":"flat"}}])",
       {"[0].arguments.note: fits none of the declared alternatives: 7",
        "[0].arguments.kind: expected \"room\", got \"flat\""}},
      {R"([{"name":"open","arguments":{"a":1}}])", {"[0].arguments.a: expected a string, got 1"}},
  };
  for (const auto& [calls, expected] : cases) {
    EXPECT_EQ(problems(calls), expected) << calls;
  }
}

}  // namespace
}  // namespace needle
