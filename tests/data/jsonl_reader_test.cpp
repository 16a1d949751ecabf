#include "needle/data/jsonl_reader.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr std::string_view kRow = R"({"query":"q","tools":"[]","answers":"[]"})";

std::string strict_error(const std::filesystem::path& path) {
  try {
    read_call_examples(path);
  } catch (const DataError& error) {
    return error.what();
  }
  return "no error";
}

class JsonlReaderTest : public ::testing::Test {
 protected:
  std::filesystem::path file(std::string_view text) {
    write_text(folder_ / "rows.jsonl", text);
    return folder_ / "rows.jsonl";
  }
  TemporaryFolder folder_;
};

TEST_F(JsonlReaderTest, StringsAndRealArraysAreTheSame) {
  const auto rows = read_call_examples(
      file(R"({"query":"q","tools":"[{\"name\":\"a\"}]","answers":"[]","other":[1,{"x":null}]})"
           "\n"
           R"({"answers":[],"tools":[{"name":"a"}],"query":"q"})"));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].tools, rows[1].tools);
  EXPECT_EQ(rows[1].answers, "[]");
  EXPECT_EQ(rows[1].line, 2);
}

TEST_F(JsonlReaderTest, RealArraysKeepTheDigitsOfNumbers) {
  const auto rows = read_call_examples(file(
      R"({"query":"q","tools":[],"answers":[{"name":"f","arguments":{"x":12345678901234567890123}}]})"));
  EXPECT_THAT(rows.at(0).answers, HasSubstr("12345678901234567890123"));
}

TEST_F(JsonlReaderTest, ByteOrderMarkBlankLinesAndWindowsLineEndsAreAccepted) {
  std::vector<std::int64_t> lines;
  const ReadReport report = for_each_call_example(
      file("\xEF\xBB\xBF" + std::string(kRow) + "\r\n\r\n  \t\n" + std::string(kRow)),
      [&](const CallExample& row) { lines.push_back(row.line); });
  EXPECT_THAT(lines, ElementsAre(1, 4));
  EXPECT_EQ(report.rows, 2);
  EXPECT_EQ(report.blank_lines, 2);
}

TEST_F(JsonlReaderTest, GzipIsToldByItsContent) {
  write_gzip(folder_ / "rows.jsonl", std::string(kRow) + "\n" + std::string(kRow) + "\n");
  EXPECT_EQ(read_call_examples(folder_ / "rows.jsonl").size(), 2u);
  write_text(folder_ / "plain.gz", kRow);
  EXPECT_EQ(read_call_examples(folder_ / "plain.gz").size(), 1u);
}

TEST_F(JsonlReaderTest, TruncatedAndDamagedGzipIsRefused) {
  std::string text;
  for (int i = 0; i < 2000; ++i) {
    text += R"({"query":")" + std::to_string(i * 7919) +
            R"(","tools":"[]","answers":"[]"})"
            "\n";
  }
  write_gzip(folder_ / "whole.gz", text);
  const std::string bytes = read_file(folder_ / "whole.gz");
  write_text(folder_ / "cut.gz", std::string_view(bytes).substr(0, bytes.size() / 2));
  EXPECT_THROW(read_call_examples(folder_ / "cut.gz"), FormatError);
  std::string damaged = bytes;
  for (std::size_t i = bytes.size() / 2; i < bytes.size() / 2 + 64; ++i) {
    damaged[i] = static_cast<char>(damaged[i] ^ 0x5A);
  }
  write_text(folder_ / "damaged.gz", damaged);
  EXPECT_THROW(read_call_examples(folder_ / "damaged.gz"), Error);
}

TEST_F(JsonlReaderTest, MissingFilesAndFoldersAreFileErrors) {
  EXPECT_THROW(read_call_examples(folder_ / "absent.jsonl"), FileError);
  EXPECT_THROW(read_call_examples(folder_.path()), FileError);
}

TEST_F(JsonlReaderTest, ErrorsNameFileLineAndColumn) {
  const std::string good = std::string(kRow) + "\n";
  const std::string name = (folder_ / "rows.jsonl").string();
  EXPECT_THAT(strict_error(file(good + "\n{\"query\" \"q\"}\n")), StartsWith(name + ":3:10: "));
  EXPECT_THAT(strict_error(file(good + "{\"query\":\"a\xFFz\"}")),
              StartsWith(name + ":2:12: expected UTF-8, got byte 0xff"));
  EXPECT_THAT(strict_error(file("[1]")), StartsWith(name + ":1:1: expected one JSON object"));
  EXPECT_THAT(strict_error(file(R"({"query":5,"tools":[],"answers":[]})")),
              EndsWith(":1: \"query\": expected a string, got an integer"));
  EXPECT_THAT(strict_error(file(R"({"query":"q","tools":{},"answers":[]})")),
              HasSubstr("\"tools\": expected an array or a JSON string, got an object"));
  EXPECT_THAT(strict_error(file(R"({"query":"q","tool":[],"answers":[]})")),
              HasSubstr("\"tools\" is missing: expected an array or a JSON string; the row has "
                        "\"query\", \"tool\", \"answers\""));
  EXPECT_THAT(strict_error(file(R"({"query":"\ud800","tools":[],"answers":[]})")),
              HasSubstr("surrogate"));
}

TEST_F(JsonlReaderTest, LenientReadingListsBadRowsAndGoesOn) {
  const std::string good = std::string(kRow) + "\n";
  std::vector<std::int64_t> lines;
  const ReadReport report =
      for_each_call_example(file(good + "nonsense\n" + good + "{}\n\x80\n" + good),
                            [&](const CallExample& row) { lines.push_back(row.line); },
                            {.policy = RowPolicy::kLenient, .max_problems = 2});
  EXPECT_THAT(lines, ElementsAre(1, 3, 6));
  EXPECT_EQ(report.bad_rows, 3);
  ASSERT_EQ(report.problems.size(), 2u);
  EXPECT_EQ(report.problems[0].line, 2);
  EXPECT_EQ(report.problems[1].line, 4);
}

TEST_F(JsonlReaderTest, LongLinesAreReadAndTooLongOnesRefused) {
  const std::string long_query(3 << 20, 'x');  // many buffers long
  const std::string row = R"({"query":")" + long_query + R"(","tools":"[]","answers":"[]"})";
  EXPECT_EQ(read_call_examples(file(row + "\n" + row)).at(1).query, long_query);

  std::vector<std::int64_t> lines;
  const ReadReport report =
      for_each_call_example(file(row + "\n" + std::string(kRow)),
                            [&](const CallExample& example) { lines.push_back(example.line); },
                            {.policy = RowPolicy::kLenient, .max_line_bytes = 1000});
  EXPECT_THAT(lines, ElementsAre(2));
  ASSERT_EQ(report.problems.size(), 1u);
  EXPECT_THAT(report.problems[0].message, HasSubstr("longer than 1000 bytes"));
}

TEST_F(JsonlReaderTest, DeepNestingIsAnErrorNotACrash) {
  const std::string deep(100000, '[');
  EXPECT_NE(strict_error(file(R"({"query":"q","answers":[],"tools":)" + deep)), "no error");
}

TEST_F(JsonlReaderTest, MaxRowsStopsEarly) {
  int rows = 0;
  const ReadReport report =
      for_each_call_example(file(std::string(kRow) + "\n" + std::string(kRow) + "\nnonsense"),
                            [&](const CallExample&) { ++rows; }, {.max_rows = 2});
  EXPECT_EQ(rows, 2);
  EXPECT_EQ(report.rows, 2);
}

TEST_F(JsonlReaderTest, PretrainingFieldsMayBeAbsentOrNull) {
  const auto rows = read_pretrain_examples(
      file(R"({"query":"a","query_seed_text":null,"synthetic_answer":"b","source":1})"
           "\n"
           R"({"query":"a"})"));
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].seed_text, "");
  EXPECT_EQ(rows[0].answer, "b");
  EXPECT_EQ(rows[1].answer, "");
  EXPECT_THROW(read_pretrain_examples(file(R"({"text":"a"})")), DataError);
}

TEST_F(JsonlReaderTest, TextsOfEveryKindOfRowAreStripped) {
  std::vector<std::string> texts;
  for_each_text(file(R"({"text":"\n a b \u00a0","source":"s"})"
                     "\n"
                     R"({"query":"q ","tools":"[ ]","answers":[{"name":"f"}]})"
                     "\n"
                     R"({"query":"q","query_seed_text":"  ","synthetic_answer":"a"})"),
                [&](std::string_view text) { texts.emplace_back(text); });
  EXPECT_THAT(texts, ElementsAre("a b", "q", "[ ]", R"([{"name":"f"}])", "q", "a"));
}

TEST_F(JsonlReaderTest, WrittenRowsReadBack) {
  const CallExample row{.query = "say \"Zoë\"\n🎉", .tools = R"([{"name": "f"}])", .answers = "no"};
  const auto rows = read_call_examples(file(to_jsonl(row)));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].query, row.query);
  EXPECT_EQ(rows[0].tools, row.tools);
  EXPECT_EQ(rows[0].answers, row.answers);
}

}  // namespace
}  // namespace needle::test
