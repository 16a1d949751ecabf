#include "needle/eval/compare.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/eval/report.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

std::vector<SavedPrediction> answers(std::initializer_list<bool> exact) {
  std::vector<SavedPrediction> saved;
  for (const bool right : exact) {
    saved.push_back({.query = format("q{}", saved.size()),
                     .reference = "[]",
                     .text = right ? "[]" : "?",
                     .ids = right ? std::vector<TokenId>{4, 9} : std::vector<TokenId>{4, 8},
                     .exact = right});
  }
  return saved;
}

TEST(CompareTest, EqualAnswersAgreeAndDoNotDiffer) {
  const auto a = answers({true, false, true});
  const Comparison comparison = compare_predictions(a, a);
  EXPECT_EQ(comparison.cases, 3);
  EXPECT_EQ(comparison.same_tokens, 3);
  EXPECT_EQ(comparison.same_text, 3);
  EXPECT_EQ(comparison.p_value, 1.0);
  EXPECT_EQ(comparison.difference_low, 0.0);
  EXPECT_EQ(comparison.difference_high, 0.0);
  EXPECT_TRUE(comparison.disagreements.empty());
}

TEST(CompareTest, McNemarIsExact) {
  // 1 against 5 disagreements: 2 * (C(6,0) + C(6,1)) / 2^6.
  const auto a = answers({true, false, false, false, false, false, true, true});
  const auto b = answers({false, true, true, true, true, true, true, true});
  const Comparison comparison = compare_predictions(a, b);
  EXPECT_EQ(comparison.only_a, 1);
  EXPECT_EQ(comparison.only_b, 5);
  EXPECT_NEAR(comparison.p_value, 2.0 * 7 / 64, 1e-12);
  EXPECT_DOUBLE_EQ(comparison.difference, 0.5);
  EXPECT_LT(comparison.difference_low, 0.5);
  EXPECT_GT(comparison.difference_high, 0.5);
  EXPECT_EQ(comparison.same_tokens, 2);
  EXPECT_THAT(comparison.disagreements, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(compare_predictions(a, b).difference_low, comparison.difference_low) << "seeded";
  EXPECT_THAT(comparison_table(comparison, "x", "y"), HasSubstr("2 (25.0 %)"));
}

TEST(CompareTest, AnswersToOtherQuestionsAreRefused) {
  const auto a = answers({true, true});
  auto b = a;
  b[1].query = "another";
  EXPECT_THROW(compare_predictions(a, b), DataError);
  EXPECT_THROW(compare_predictions(a, answers({true})), DataError);
  EXPECT_EQ(compare_predictions({}, {}).p_value, 1.0);
}

TEST(SavedPredictionsTest, SurviveAFile) {
  const test::TemporaryFolder folder;
  auto saved = answers({true, false});
  saved[0].query = "line\nbreak \u00e9 \"";
  write_predictions(folder / "p.jsonl", saved);
  const auto read = read_predictions(folder / "p.jsonl");
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[0].query, saved[0].query);
  EXPECT_EQ(read[0].ids, saved[0].ids);
  EXPECT_EQ(read[0].exact, true);
  EXPECT_EQ(read[1].exact, false);
  EXPECT_EQ(read[1].text, "?");
}

TEST(SavedPredictionsTest, BrokenFilesNameTheLine) {
  const test::TemporaryFolder folder;
  for (const std::string bad :
       {"{", "[]", "7", "{\"query\":1}",
        R"({"query":"","reference":"","text":"","ids":[{}],"exact":true})",
        R"({"query":"","reference":"","text":"","ids":[],"exact":"yes"})"}) {
    write_file_atomic(folder / "p.jsonl",
                      R"({"query":"","reference":"","text":"","ids":[],"exact":true})"
                      "\n" +
                          bad + "\n");
    try {
      read_predictions(folder / "p.jsonl");
      ADD_FAILURE() << bad;
    } catch (const FormatError& error) {
      EXPECT_THAT(error.what(), HasSubstr("p.jsonl:2")) << bad;
    }
  }
  EXPECT_THROW(read_predictions(folder / "absent.jsonl"), FileError);
}

}  // namespace
}  // namespace needle
