#include "needle/calls/tool.h"

#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::string error_of(std::string_view tools) {
  try {
    parse_tools_text(tools);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST(ToolTest, ReadsFlatParameters) {
  const auto tools = parse_tools_text(R"([{"name":"set_timer","description":"Start.","parameters":{
      "minutes":{"type":"integer","description":"Length.","required":true},
      "label":{"type":"string","required":false},"type":{"type":"string"}}},{"name":"stop"}])");
  ASSERT_EQ(tools.size(), 2U);
  EXPECT_EQ(tools[0].name, "set_timer");
  EXPECT_EQ(tools[0].description, "Start.");
  ASSERT_EQ(tools[0].parameters.size(), 3U);
  EXPECT_EQ(tools[0].parameters[0].name, "minutes");
  EXPECT_EQ(tools[0].parameters[0].type, "integer");
  EXPECT_EQ(tools[0].parameters[0].description, "Length.");
  EXPECT_TRUE(tools[0].parameters[0].required);
  EXPECT_FALSE(tools[0].parameters[1].required);
  ASSERT_NE(tools[0].find_parameter("type"), nullptr);
  EXPECT_EQ(tools[0].find_parameter("nothing"), nullptr);
  EXPECT_TRUE(tools[1].parameters.empty());
}

TEST(ToolTest, ReadsJsonSchema) {
  const auto tools = parse_tools_text(R"([{"name":"f","parameters":{"type":"object","properties":{
      "city":{"type":"string"},"days":{"type":["null","integer"]},"any":true},"required":["city"]}}])");
  ASSERT_EQ(tools[0].parameters.size(), 3U);
  EXPECT_TRUE(tools[0].parameters[0].required);
  EXPECT_FALSE(tools[0].parameters[1].required);
  EXPECT_EQ(tools[0].parameters[1].type, "integer");
  EXPECT_EQ(tools[0].parameters[2].type, "");
}

TEST(ToolTest, AllStylesGiveTheSameTool) {
  const std::string inner =
      R"({"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"type":"string"}}}})";
  const std::string mcp =
      R"({"name":"f","description":"d","inputSchema":{"type":"object","properties":{"a":{"type":"string"}}}})";
  const Tool expected = parse_tools_text("[" + inner + "]").at(0);
  for (const std::string& text : {R"([{"type":"function","function":)" + inner + "}]",
                                  R"({"tools":[)" + mcp + "]}", "[" + mcp + "]"}) {
    const Tool tool = parse_tools_text(text).at(0);
    EXPECT_EQ(write_compact(tool.declared), write_compact(expected.declared)) << text;
    EXPECT_EQ(tool.parameters.size(), 1U);
  }
  EXPECT_EQ(parse_tools(JsonValue::string("[" + inner + "]")).size(),
            1U);  // a JSON string that holds the array
}

TEST(ToolTest, TellsSchemasFromFlatMaps) {
  const auto is_schema = [](std::string_view text) {
    return is_json_schema(*parse_json_value(text).value);
  };
  EXPECT_TRUE(is_schema(R"({"type":"object","properties":{}})"));
  EXPECT_TRUE(is_schema(R"({"type":"dict"})"));
  EXPECT_TRUE(is_schema(R"({"properties":{"city":{"type":"string"}}})"));
  EXPECT_FALSE(is_schema(R"({"city":{"type":"string"}})"));
  EXPECT_FALSE(is_schema(R"({"type":{"type":"string"}})"));
  EXPECT_FALSE(is_schema(R"({"properties":{"type":"string","description":"which"}})"));
  EXPECT_FALSE(is_schema("{}"));
}

TEST(ToolTest, MapsTypeNames) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"dict", "object"},      {"float", "number"},
      {"tuple", "array"},      {"String", "string"},
      {"List[str]", "array"},  {"int", "integer"},
      {"Map<K, V>", "object"}, {"any", ""},
      {"boolean", "boolean"},  {"", ""}};
  for (const auto& [declared, expected] : cases) {
    EXPECT_EQ(json_schema_type(declared), expected) << declared;
  }
}

TEST(ToolTest, ErrorsNameThePlace) {
  EXPECT_NE(error_of("nonsense").find("tools: not JSON: line 1 column 1"), std::string::npos);
  EXPECT_EQ(error_of("5"), "tools: expected an array of tools, got 5");
  EXPECT_EQ(error_of(R"([{"name":"a"},7])"), "tools[1]: expected an object with a name, got 7");
  EXPECT_EQ(error_of(R"([{"name":""}])"), "tools[0].name: expected a name, got \"\"");
  EXPECT_EQ(error_of(R"([{"name":"a","parameters":[1]}])"),
            "tools[0].parameters: expected an object, got [1]");
  EXPECT_EQ(error_of(R"([{"name":"a","parameters":{"x":5}}])"),
            "tools[0].parameters.x: expected an object that describes the parameter, got 5");
  EXPECT_NE(error_of(R"("[]")"), "");
}

TEST(ToolTest, ReadsEverySharedToolList) {
  const auto folder = test::shared_dir() / "data" / "tools";
  if (!std::filesystem::is_directory(folder)) {
    GTEST_SKIP() << "no shared data at " << folder;
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path());
    const std::string text((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    EXPECT_FALSE(parse_tools_text(text).empty()) << entry.path();
  }
}

}  // namespace
}  // namespace needle
