#include "needle/data/check.h"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::string_view kTools =
    R"([{"name":"send","description":"d","parameters":{"to":{"type":"string","required":true},)"
    R"("mood":{"type":"string","enum":["glad","sad"]},"copies":{"type":"integer"}}}])";

class CheckTest : public ::testing::Test {
 protected:
  CheckReport check(const std::vector<std::pair<std::string, std::string>>& rows,
                    const CheckOptions& options = {}) {
    std::string text;
    for (const auto& [query, answers] : rows) {
      text += to_jsonl({.query = query, .tools = std::string(kTools), .answers = answers});
    }
    write_text(folder_ / "rows.jsonl", text + extra_);
    return check_calls_file(folder_ / "rows.jsonl", options);
  }
  TemporaryFolder folder_;
  std::string extra_;
};

std::string send(std::string_view arguments) {
  return R"([{"name":"send","arguments":)" + std::string(arguments) + "}]";
}

std::vector<std::int64_t> lines_of(const CheckReport& report, FindingKind kind) {
  std::vector<std::int64_t> lines;
  for (const Finding& finding : report.findings) {
    if (finding.kind == kind) {
      lines.push_back(finding.place.line);
    }
  }
  return lines;
}

TEST_F(CheckTest, GoodRowsAreOk) {
  const CheckReport report =
      check({{"send it to Ann", send(R"({"to":"ann","mood":"sad"})")}, {"what time is it", "[]"}});
  EXPECT_TRUE(report.ok()) << report.text();
  EXPECT_TRUE(report.findings.empty()) << report.text();
  EXPECT_EQ(report.rows, 2);
  EXPECT_EQ(report.calls, 1);
  EXPECT_EQ(report.rows_without_call, 1);
  EXPECT_THAT(report.few, ElementsAre("send"));
  EXPECT_TRUE(report.to_json()["ok"].get<bool>());
}

TEST_F(CheckTest, EveryKindOfProblemIsFoundAtItsLine) {
  extra_ = "nonsense\n" + to_jsonl({.query = "bad tools", .tools = "[5]", .answers = "[]"});
  const CheckReport report = check({
      {"send it to Ann", send(R"({"to":"Ann"})")},
      {"send it to Bob", send(R"({"copies":"three"})")},       // 2: no "to", a wrong type
      {"send it to Cem", send(R"({"to":"Dora"})")},            // 3: not in the query
      {"send it to Ann", send(R"({"to":"Ann"})")},             // 4: as row 1
      {"send it to Ann", send(R"({"to":"Ann","copies":2})")},  // 5: another answer
      {"send it to Eve", "sorry"},                             // 6: no list of calls
  });
  EXPECT_FALSE(report.ok());
  EXPECT_THAT(lines_of(report, FindingKind::kInvalidCall), ElementsAre(2, 2));
  EXPECT_THAT(lines_of(report, FindingKind::kUngrounded), ElementsAre(2, 3));
  EXPECT_THAT(lines_of(report, FindingKind::kDuplicate), ElementsAre(4));
  EXPECT_THAT(lines_of(report, FindingKind::kConflict), ElementsAre(5));
  EXPECT_THAT(lines_of(report, FindingKind::kBadAnswers), ElementsAre(6));
  EXPECT_THAT(lines_of(report, FindingKind::kBadRow), ElementsAre(7));
  EXPECT_THAT(lines_of(report, FindingKind::kBadTools), ElementsAre(8));
  EXPECT_TRUE(std::is_sorted(
      report.findings.begin(), report.findings.end(),
      [](const Finding& a, const Finding& b) { return a.place.line < b.place.line; }));
  EXPECT_EQ(report.to_json()["counts"]["invalid_call"], 2);
  EXPECT_THAT(report.text(), HasSubstr("rows.jsonl:3: send.to: \"Dora\" does not occur"));
}

TEST_F(CheckTest, WordsOfLongerValuesMayBeApart) {
  const CheckReport report =
      check({{"tell my good old friend Ann about it", send(R"({"to":"friend Ann"})")},
             {"please write to Ann, Bob and Cem now", send(R"({"to":"Ann and Bob"})")},
             {"say hi to the one on the left", send(R"({"to":"left one hi Zed"})")},
             {"say hi to them", send(R"({"to":"hi Zed"})")}});
  EXPECT_THAT(lines_of(report, FindingKind::kUngrounded), ElementsAre(4));
}

TEST_F(CheckTest, LengthsAreCheckedWithATokenizer) {
  CheckOptions options{.tokenizer = golden_tokenizer()};
  options.prompt.max_enc_len = 150;
  options.prompt.max_dec_len = 60;
  const CheckReport report = check({{"Ann", send(R"({"to":"Ann"})")},
                                    {std::string(300, 'x'), "[]"},
                                    {"Ann", send(R"({"to":")" + std::string(80, 'y') + "\"}")}},
                                   options);
  EXPECT_EQ(report.lengths.rows, 3);
  EXPECT_EQ(report.lengths.dropped_too_long, 1);
  EXPECT_THAT(lines_of(report, FindingKind::kTooLong), ::testing::Contains(2));
  EXPECT_THAT(lines_of(report, FindingKind::kTooLong), ::testing::Contains(3));
}

TEST_F(CheckTest, CountsAreCompleteWhenTheListIsNot) {
  std::vector<std::pair<std::string, std::string>> rows(9, {"q", "[]"});
  const CheckReport report = check(rows, {.max_findings = 3});
  EXPECT_EQ(report.count(FindingKind::kDuplicate), 8);
  EXPECT_EQ(report.findings.size(), 3u);
}

TEST_F(CheckTest, AMissingFileIsAFileError) {
  EXPECT_THROW(check_calls_file(folder_ / "absent.jsonl"), FileError);
}

}  // namespace
}  // namespace needle::test
