#include "needle/runtime/rope_table.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace needle::runtime {
namespace {

const ModelConfig kConfig{.d_model = 64, .num_heads = 4};

bool agree(const RopeTable& a, const RopeTable& b) {
  for (std::int64_t position = 0; position < std::min(a.positions(), b.positions()); ++position) {
    for (std::int64_t i = 0; i < kConfig.head_dim() / 2; ++i) {
      if (a.cos(position)[i] != b.cos(position)[i] || a.sin(position)[i] != b.sin(position)[i]) {
        return false;
      }
    }
  }
  return true;
}

TEST(RopeTableTest, APositionIsTheSameInEveryTable) {
  const RopeTable table(kConfig, 100);
  EXPECT_TRUE(agree(table, RopeTable(kConfig, 7)));
  EXPECT_TRUE(agree(table, RopeTable(kConfig, 100)));
  ModelConfig other = kConfig;
  other.rope_theta = 500;
  EXPECT_FALSE(agree(table, RopeTable(other, 100)));
}

TEST(RopeTablesTest, OneIsSharedUntilALongerOneIsNeeded) {
  const RopeTables tables;
  const auto first = tables.at_least(kConfig, 33);
  EXPECT_EQ(first->positions(), 64);
  EXPECT_EQ(tables.at_least(kConfig, 64), first);
  EXPECT_EQ(tables.at_least(kConfig, 0), first);
  const auto longer = tables.at_least(kConfig, 65);
  EXPECT_EQ(longer->positions(), 128);
  EXPECT_EQ(tables.at_least(kConfig, 33), longer);
  EXPECT_TRUE(agree(*first, *longer));  // the first lives as long as who has it
}

TEST(RopeTablesTest, AVeryLongOneIsNotKept) {
  const RopeTables tables;
  const auto usual = tables.at_least(kConfig, 10);
  EXPECT_EQ(tables.at_least(kConfig, RopeTables::kMostKept + 1)->positions(),
            RopeTables::kMostKept + 1);
  EXPECT_EQ(tables.at_least(kConfig, 10), usual);
}

TEST(RopeTablesTest, ServesSeveralThreads) {
  const RopeTables tables;
  const RopeTable expected(kConfig, 300);
  std::vector<std::thread> threads;
  std::vector<int> right(4);
  for (std::size_t t = 0; t < right.size(); ++t) {
    threads.emplace_back([&, t] {
      for (std::int64_t positions = 1; positions < 300; ++positions) {
        right[t] += agree(*tables.at_least(kConfig, positions), expected) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(right, std::vector<int>(4, 299));
}

}  // namespace
}  // namespace needle::runtime
