#include "needle/core/json.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::string message_of(std::string_view text) {
  try {
    parse_json(text, "a.json");
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(JsonTest, KeepsTheOrderOfKeys) {
  EXPECT_EQ(parse_json(R"({"z": 1, "a": [true, null], "m": "x"})", "text").dump(),
            R"({"z":1,"a":[true,null],"m":"x"})");
}

TEST(JsonTest, TellsLineAndColumn) {
  EXPECT_THAT(message_of("{\n  \"a\": 1,\n  \"b\" 2\n}"), testing::StartsWith("a.json:3:7: "));
  EXPECT_THAT(message_of("[1, 2"), testing::StartsWith("a.json:1:"));
  EXPECT_THAT(message_of(""), testing::StartsWith("a.json:1:1: "));
  EXPECT_THAT(message_of("[1] x"), testing::StartsWith("a.json:1:5: "));
  EXPECT_THAT(message_of("{\"a\": nul}"), testing::Not(testing::HasSubstr("json.exception")));
}

TEST(JsonTest, RefusesWhatIsNotJson) {
  for (const char* text : {"{'a': 1}", "[1,]", "[NaN]", "1e999", "\"\xff\"", "\"\\ud800\"",
                           "{\"a\":1", "// comment\n1", "\"tab\there\""}) {
    EXPECT_THAT(message_of(text), testing::HasSubstr("not valid JSON")) << text;
  }
}

TEST(JsonTest, RefusesAKeyTwiceInOneObjectOnly) {
  EXPECT_THAT(message_of(R"({"a": 1, "b": {"c": 1, "c": 2}})"),
              testing::HasSubstr("\"c\" occurs twice"));
  EXPECT_EQ(message_of(R"([{"a": {"a": 1}}, {"a": 2}])"), "accepted");
}

TEST(JsonTest, BoundsTheDepth) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(message_of(nested(200)), "accepted");
  EXPECT_THAT(message_of(nested(201)), testing::StartsWith("a.json:1:201: "));
  EXPECT_THAT(message_of(std::string(10'000'000, '[')), testing::HasSubstr("200"));
  // Brackets inside strings do not count.
  EXPECT_EQ(message_of("[\"" + std::string(500, '[') + "\\\"" + std::string(500, '{') + "\"]"),
            "accepted");
}

TEST(JsonTest, EveryTruncationIsRefused) {
  const std::string text = R"({"a": [1, -2.5e3, "x\u00e9\n"], "b": {"c": null, "d": false}})";
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_NE(message_of(text.substr(0, size)), "accepted") << size;
  }
  EXPECT_EQ(message_of(text), "accepted");
}

TEST(JsonTest, FilesRoundTrip) {
  const test::TemporaryFolder folder;
  const Json value = {{"b", 1}, {"a", {1.5, "é"}}};
  write_json_file(folder / "a.json", value);
  EXPECT_EQ(read_json_file(folder / "a.json"), value);
  EXPECT_TRUE(read_file(folder / "a.json").ends_with("}\n"));
  EXPECT_THROW(write_json_file(folder / "b.json", Json("\xff")), FormatError);
  EXPECT_FALSE(std::filesystem::exists(folder / "b.json"));
}

TEST(JsonTest, AMissingFileIsNamed) {
  try {
    read_json_file("no/such/file.json");
    FAIL() << "did not throw";
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("no/such/file.json"));
  }
}

}  // namespace
}  // namespace needle
