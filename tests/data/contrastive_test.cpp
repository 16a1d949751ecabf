#include "needle/data/contrastive.h"

#include <algorithm>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

// Example i: query {100 + i}, tools {200 + 10 i + k}; every third calls none of its tools.
PackedDataset numbered_dataset(int count) {
  std::vector<EncodedExample> examples;
  for (int i = 0; i < count; ++i) {
    EncodedExample example{.row = i, .source = {7}, .decoder_in = {1}, .target = {1}};
    example.classes = {TokenClass::kStructure};
    example.query_ids.assign(static_cast<std::size_t>(1 + i % 5), 100 + i);
    for (int k = 0; k < 3; ++k) {
      example.tools.push_back({.called = i % 3 != 0 && k < 2, .ids = {200 + 10 * i + k}});
    }
    examples.push_back(std::move(example));
  }
  DatasetInfo info = test_info(8, 8);
  info.vocab_size = 2000;
  PackedDatasetBuilder builder(info);
  builder.add(examples);
  return builder.build();
}

std::vector<TokenId> first_ids(const std::vector<TokenId>& ids, std::int64_t length) {
  std::vector<TokenId> first;
  for (std::size_t i = 0; i < ids.size(); i += static_cast<std::size_t>(length)) {
    first.push_back(ids[i]);
  }
  return first;
}

TEST(ContrastiveTest, EveryQueryHasOneOfItsCalledTools) {
  const ContrastiveSampler sampler(numbered_dataset(20), {.batch_rows = 6});
  EXPECT_EQ(sampler.query_count(), 13);  // 20 without 0, 3, ..., 18
  std::map<TokenId, std::set<TokenId>> tools_of;
  for (std::int64_t step = 0; step < 200; ++step) {
    const ContrastiveBatch batch = sampler.batch(step);
    ASSERT_EQ(batch.rows, 6);
    EXPECT_EQ(batch.query_len, 8);
    const auto queries = first_ids(batch.queries, batch.query_len);
    const auto tools = first_ids(batch.tools, batch.tool_len);
    EXPECT_EQ(std::set<TokenId>(queries.begin(), queries.end()).size(), 6u);
    for (std::size_t i = 0; i < queries.size(); ++i) {
      const TokenId example = queries[i] - 100;
      EXPECT_NE(example % 3, 0);
      EXPECT_EQ((tools[i] - 200) / 10, example);
      EXPECT_LT((tools[i] - 200) % 10, 2);
      tools_of[example].insert(tools[i]);
    }
  }
  EXPECT_EQ(tools_of.size(), 13u);  // in 200 draws every query came, with both of its tools
  for (const auto& [example, tools] : tools_of) {
    EXPECT_EQ(tools.size(), 2u) << example;
  }
}

TEST(ContrastiveTest, ADrawFollowsFromStepAndRankAlone) {
  const ContrastiveSampler a(numbered_dataset(50), {.batch_rows = 8, .seed = 4});
  const ContrastiveSampler b(numbered_dataset(50), {.batch_rows = 8, .seed = 4});
  a.batch(1);
  EXPECT_EQ(a.batch(7, 1).queries, b.batch(7, 1).queries);
  EXPECT_NE(a.batch(7, 0).queries, b.batch(7, 1).queries);
  EXPECT_NE(a.batch(7).queries, a.batch(8).queries);
}

TEST(ContrastiveTest, SmallDataSetsGiveWhatTheyHave) {
  const ContrastiveSampler two(numbered_dataset(3), {.batch_rows = 64});
  EXPECT_EQ(two.batch(0).rows, 2);
  const ContrastiveSampler none(numbered_dataset(1), {.batch_rows = 64});
  EXPECT_EQ(none.query_count(), 0);
  const ContrastiveBatch batch = none.batch(0);
  EXPECT_EQ(batch.rows, 0);
  EXPECT_TRUE(batch.queries.empty());
}

}  // namespace
}  // namespace needle::test
