#include "needle/data/split.h"

#include <algorithm>
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<CallExample> rows_calling(const std::map<std::string, int>& counts) {
  std::vector<CallExample> rows;
  for (const auto& [tool, count] : counts) {
    for (int i = 0; i < count; ++i) {
      const std::string answers =
          tool == kNoTool ? "[]" : R"([{"name":")" + tool + R"(","arguments":{}},{"name":"x"}])";
      rows.push_back({.query = tool + std::to_string(i), .answers = answers});
    }
  }
  return rows;
}

TEST(SplitTest, EveryExampleGoesToOnePartAndEveryToolToAll) {
  const auto rows = rows_calling({{"a", 3}, {"b", 20}, {"c", 150}, {std::string(kNoTool), 7}});
  const Split split = split_by_tool(rows);
  std::vector<std::int64_t> all = split.train;
  all.insert(all.end(), split.validation.begin(), split.validation.end());
  all.insert(all.end(), split.test.begin(), split.test.end());
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), rows.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i], static_cast<std::int64_t>(i));
  }
  for (const auto* part : {&split.train, &split.validation, &split.test}) {
    EXPECT_TRUE(std::is_sorted(part->begin(), part->end()));
    std::set<std::string> tools;
    for (const std::int64_t index : *part) {
      tools.insert(primary_tool(rows[static_cast<std::size_t>(index)]));
    }
    EXPECT_THAT(tools, ElementsAre("a", "b", "c", "no-tool"));
  }
  ASSERT_EQ(split.tools.size(), 4u);
  EXPECT_EQ(split.tools[0].tool, "c");
  EXPECT_EQ(split.tools[0].sizes, (SplitSizes{.train = 130, .validation = 10, .test = 10}));
}

TEST(SplitTest, FollowsTheSeedAlone) {
  const auto rows = rows_calling({{"a", 40}, {"b", 40}});
  EXPECT_EQ(split_by_tool(rows).test, split_by_tool(rows).test);
  EXPECT_NE(split_by_tool(rows).test, split_by_tool(rows, {.seed = 7}).test);
}

TEST(SplitTest, SizesGrowSteadilyAndThreeExamplesTrain) {
  SplitSizes before = split_sizes(2);
  for (std::int64_t n = 3; n < 200; ++n) {
    const SplitSizes sizes = split_sizes(n);
    EXPECT_GE(sizes.train, 1) << n;
    EXPECT_GE(sizes.validation, 1) << n;
    EXPECT_GE(sizes.test, 1) << n;
    EXPECT_GE(sizes.train, before.train) << n;
    EXPECT_EQ(sizes.train + sizes.validation + sizes.test, n);
    before = sizes;
  }
  EXPECT_EQ(split_sizes(0), SplitSizes{});
  EXPECT_EQ(split_sizes(100, {.validation_per_tool = 0, .test_per_tool = 5}),
            (SplitSizes{.train = 95, .validation = 0, .test = 5}));
}

TEST(SplitTest, WarnsAboutToolsWithFewExamples) {
  const auto rows = rows_calling({{"a", 2}, {"b", 30}, {"c", 120}, {std::string(kNoTool), 4}});
  const Split split = split_by_tool(rows);
  ASSERT_EQ(split.warnings.size(), 2u);
  EXPECT_THAT(split.warnings[0], HasSubstr("\"b\" has 30 examples"));
  EXPECT_THAT(split.warnings[1], HasSubstr("\"a\" has 2 examples: none is left for training"));
}

TEST(SplitTest, TooFewRowsTrainAllOfThem) {
  for (const int count : {1, 2}) {
    const auto rows = rows_calling({{"a", count}});
    const Split split = split_by_tool(rows);
    EXPECT_EQ(split.train.size(), static_cast<std::size_t>(count));
    EXPECT_EQ(split.test.size(), 1u);
    EXPECT_EQ(split.validation.size(), 1u);
    EXPECT_THAT(split.warnings, Contains(HasSubstr("too few to hold any back")));
    EXPECT_THAT(split_by_tool(rows, {.reference_sizes = true}).train, IsEmpty());
  }
  EXPECT_THAT(split_by_tool({}).train, IsEmpty());
}

TEST(SplitTest, PrimaryToolIsTheFirstCall) {
  EXPECT_EQ(primary_tool({.answers = R"([{"name":"f"},{"name":"g"}])"}), "f");
  EXPECT_EQ(primary_tool({.answers = R"({"name":"f"})"}), "f");
  for (const char* none : {"[]", "sorry", "[1]", R"([{"name":5}])", "5", R"([{"name":""}])"}) {
    EXPECT_EQ(primary_tool({.answers = none}), kNoTool) << none;
  }
}

TEST(SplitTest, SelectsByIndex) {
  const auto rows = rows_calling({{"a", 3}});
  const auto selected = select_examples(rows, std::vector<std::int64_t>{2, 0});
  ASSERT_EQ(selected.size(), 2u);
  EXPECT_EQ(selected[0].query, "a2");
  EXPECT_THROW(select_examples(rows, std::vector<std::int64_t>{3}), Error);
}

}  // namespace
}  // namespace needle::test
