#include "needle/server/tool_reader.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/server/api_error.h"
#include "needle/server/body.h"

namespace needle {
namespace {

JsonValue body_with(const std::string& tools) { return parse_body("{\"tools\":" + tools + "}"); }

std::string tool_of(std::size_t bytes, const std::string& name) {
  return R"([{"name":")" + name + R"(","description":")" + std::string(bytes, 'x') + "\"}]";
}

TEST(ToolReaderTest, ReadsTheSameToolsOnceAndOthersAgain) {
  ToolReader reader({});
  const auto first = reader.read(body_with(R"([{"name":"a"}])"));
  EXPECT_EQ(reader.read(body_with(R"([ {"name" : "a"} ])")), first);
  const auto other = reader.read(body_with(R"([{"name":"a","description":"other"}])"));
  EXPECT_NE(other, first);
  EXPECT_EQ(other->json, R"([{"name":"a","description":"other"}])");
  EXPECT_EQ(other->tools.at(0).description, "other");
  EXPECT_EQ(reader.kept(), 2U);
}

TEST(ToolReaderTest, AToolThatIsStrictMakesTheRequestStrict) {
  ToolReader reader({});
  EXPECT_TRUE(reader.read(body_with(R"([{"name":"a"},{"name":"b","strict":true}])"))->strict);
  EXPECT_FALSE(reader.read(body_with(R"([{"name":"a"},{"name":"b","strict":false}])"))->strict);
}

TEST(ToolReaderTest, NoToolsAreNoneWhetherAbsentNullOrEmpty) {
  ToolReader reader({});
  for (const std::string body : {"{}", R"({"tools":null})", R"({"tools":[]})"}) {
    const auto read = reader.read(parse_body(body));
    EXPECT_EQ(read->json, "[]") << body;
    EXPECT_TRUE(read->tools.empty()) << body;
  }
}

TEST(ToolReaderTest, RefusesAgainWhatItRefused) {
  ToolReader reader({.tools = 1});
  for (int i = 0; i < 2; ++i) {
    EXPECT_THROW(reader.read(body_with(R"([{"name":"a"},{"name":"b"}])")), ApiError);
    EXPECT_THROW(reader.read(body_with(R"([{"description":"no name"}])")), ApiError);
  }
  EXPECT_EQ(reader.kept(), 0U);
}

TEST(ToolReaderTest, ForgetsTheLeastRecentlyUsed) {
  ToolReader reader({});
  const JsonValue popular = body_with(R"([{"name":"popular"}])");
  const JsonValue rare = body_with(R"([{"name":"rare"}])");
  const auto first = reader.read(popular);
  const auto once = reader.read(rare);
  for (std::size_t i = 0; i < ToolReader::kKept; ++i) {
    reader.read(body_with(tool_of(i + 1, "t")));
    EXPECT_EQ(reader.read(popular), first) << i;
  }
  EXPECT_EQ(reader.kept(), ToolReader::kKept);
  EXPECT_NE(reader.read(rare), once);
}

TEST(ToolReaderTest, KeepsNoMoreTextThanItsBound) {
  const std::size_t third = ToolReader::kKeptBytes / 3;
  ToolReader reader({.tool_bytes = 2 * ToolReader::kKeptBytes});
  for (const std::string name : {"a", "b", "c", "d"}) {
    reader.read(body_with(tool_of(third, name)));
  }
  EXPECT_EQ(reader.kept(), 2U);
  reader.read(body_with(tool_of(ToolReader::kKeptBytes, "too_long")));
  EXPECT_EQ(reader.kept(), 2U);
}

}  // namespace
}  // namespace needle
