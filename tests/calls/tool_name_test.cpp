#include "needle/calls/tool_name.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/utf8.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::vector<std::string> snake_names(const NormalizedTools& tools) {
  std::vector<std::string> names;
  for (const auto& [snake, original] : tools.original_by_snake) {
    names.push_back(snake);
  }
  return names;
}

TEST(ToolNameGolden, SnakeCaseAsTheReference) {
  const Json cases = read_json_file(test::golden("data/snake_case.json"));
  ASSERT_FALSE(cases.empty());
  for (const Json& row : cases) {
    const auto name = row.at("in").get<std::string>();
    EXPECT_EQ(to_snake_case(name), row.at("out").get<std::string>()) << name;
  }
}

TEST(ToolNameGolden, NormalizesAndRestoresAsTheReference) {
  const Json cases = read_json_file(test::golden("generate/names.json"));
  ASSERT_FALSE(cases.empty());
  for (const Json& row : cases) {
    const auto tools_json = row.at("tools").get<std::string>();
    const NormalizedTools tools = normalize_tool_names(tools_json, NameStyle::kReference);
    EXPECT_EQ(tools.tools_json, row.at("normalized").get<std::string>()) << tools_json;
    Json map = Json::object();
    for (const auto& [snake, original] : tools.original_by_snake) {
      map[snake] = original;
    }
    EXPECT_EQ(map, row.at("map")) << tools_json;
    for (const Json& restored : row.at("restored")) {
      const auto text = restored.at("in").get<std::string>();
      EXPECT_EQ(restore_tool_names(text, tools), restored.at("out").get<std::string>())
          << tools_json << " " << text;
    }
  }
}

TEST(ToolNameTest, UniqueNamesNeverCollideOrVanish) {
  const auto tools = normalize_tool_names(
      R"([{"name":"getWeather"},{"name":"get_weather"},{"name":"天気"},{"name":"GetWeather"},{"name":"---"},{"name":"getWeather"}])");
  EXPECT_EQ(snake_names(tools), (std::vector<std::string>{"get_weather_2", "get_weather", "tool_3",
                                                          "get_weather_3", "tool_5"}));
  EXPECT_EQ(
      tools.tools_json,
      R"([{"name":"get_weather_2"},{"name":"get_weather"},{"name":"tool_3"},{"name":"get_weather_3"},{"name":"tool_5"},{"name":"get_weather_2"}])");
  EXPECT_EQ(restore_tool_names(R"([{"name":"get_weather_2","arguments":{}},{"name":"tool_3"}])",
                               tools, JsonEscapes::kUtf8),
            R"([{"name":"getWeather","arguments":{}},{"name":"天気"}])");
}

TEST(ToolNameTest, UniqueSuffixAvoidsNamesThatExist) {
  const auto tools = normalize_tool_names(R"([{"name":"a_b"},{"name":"aB"},{"name":"a_b_2"}])");
  EXPECT_EQ(snake_names(tools), (std::vector<std::string>{"a_b", "a_b_3", "a_b_2"}));
}

TEST(ToolNameTest, UniqueUnwrapsOtherStyles) {
  EXPECT_EQ(normalize_tool_names(
                R"([{"type":"function","function":{"name":"setTimer","parameters":{}}}])")
                .tools_json,
            R"([{"name":"set_timer","parameters":{}}])");
  EXPECT_EQ(
      normalize_tool_names(R"({"tools":[{"name":"setTimer","inputSchema":{"type":"object"}}]})")
          .tools_json,
      R"([{"name":"set_timer","parameters":{"type":"object"}}])");
}

TEST(ToolNameTest, WhatIsNotAListOfToolsStaysAsItIs) {
  for (const char* text : {"not json", "", "{\"a\": 1}", "3", "\"[]\""}) {
    EXPECT_EQ(normalize_tool_names(text).tools_json, text);
    EXPECT_TRUE(normalize_tool_names(text).original_by_snake.empty());
  }
  EXPECT_EQ(normalize_tool_names(R"([ 5, {"name": 7}, {"name": "ok"} ])").tools_json,
            R"([5,{"name":7},{"name":"ok"}])");
}

TEST(ToolNameTest, RestoreIsValidUtf8) {
  const auto tools = normalize_tool_names(R"([{"name":"a\ud800b"}])");
  EXPECT_TRUE(is_valid_utf8(restore_tool_names("call a_b now", tools)));
  EXPECT_TRUE(is_valid_utf8(restore_tool_names(R"([{"name":"a_b"}])", tools, JsonEscapes::kUtf8)));
}

TEST(ToolNameTest, TemplatesAreNotShownToTheModel) {
  const std::string_view tools =
      R"([{"name":"wake","parameters":{},"templates":["wake me at {time}"]}])";
  EXPECT_EQ(normalize_tool_names(tools).tools_json, R"([{"name":"wake","parameters":{}}])");
  EXPECT_EQ(normalize_tool_names(tools, NameStyle::kReference).tools_json, tools);
}

TEST(ToolNameTest, EveryNameComesBack) {
  Random random(8);
  const std::string alphabet = "aAbB1_-. \xC3\xA9";
  for (int round = 0; round < 300; ++round) {
    JsonValue::Array tools;
    JsonValue::Array calls;
    for (std::uint32_t i = random.below(8); i > 0; --i) {
      std::string name;
      for (std::uint32_t k = random.below(5); k > 0; --k) {
        name += alphabet[random.below(9)];
      }
      tools.push_back(JsonValue::object({{"name", JsonValue::string(name)}}));
    }
    const auto normalized = normalize_tool_names(write_compact(JsonValue::array(tools)));
    const auto names = snake_names(normalized);
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), names.size());
    EXPECT_EQ(std::count(names.begin(), names.end(), ""), 0);
    if (!tools.empty()) {
      EXPECT_EQ(restore_tool_names(normalized.tools_json, normalized),
                write_compact(JsonValue::array(tools)));
    }
  }
}

}  // namespace
}  // namespace needle
