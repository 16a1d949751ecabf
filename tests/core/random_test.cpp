#include "needle/core/random.h"

#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

// The first numbers of the generator's own demonstration program (pcg32-demo, seed 42, stream 54).
TEST(RandomTest, MatchesThePublishedSequence) {
  Random random(42, 54);
  const std::array<std::uint32_t, 6> expected = {0xa15c02b7, 0x7b47f409, 0xba1d3330,
                                                 0x83d2f293, 0xbfa4784b, 0xcbed606e};
  for (const std::uint32_t value : expected) {
    EXPECT_EQ(random.next_u32(), value);
  }
}

TEST(RandomTest, GoesOnFromAState) {
  Random random(1, 2);
  random.next_u32();
  Random copy = Random::from_state(random.state());
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(copy.next_u32(), random.next_u32());
  }
  EXPECT_THROW(Random::from_state({.state = 1, .increment = 2}), Error);
}

TEST(RandomTest, BelowIsUniform) {
  Random random(3);
  constexpr std::uint32_t kBound = 7;
  constexpr int kDraws = 70'000;
  std::array<int, kBound> counts{};
  for (int i = 0; i < kDraws; ++i) {
    ++counts.at(random.below(kBound));
  }
  // Five standard deviations of a binomial count.
  const double mean = static_cast<double>(kDraws) / kBound;
  const double deviation = std::sqrt(mean * (1.0 - 1.0 / kBound));
  for (const int count : counts) {
    EXPECT_NEAR(count, mean, 5 * deviation);
  }
  EXPECT_EQ(random.below(1), 0u);
  EXPECT_THROW(random.below(0), Error);
}

TEST(RandomTest, UniformAndNormalHaveTheirMoments) {
  Random random(4);
  constexpr int kDraws = 100'000;
  double sum = 0.0;
  double normal_sum = 0.0;
  double normal_squares = 0.0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    const double n = random.normal();
    normal_sum += n;
    normal_squares += n * n;
  }
  const double root = std::sqrt(static_cast<double>(kDraws));
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * std::sqrt(1.0 / 12) / root);
  EXPECT_NEAR(normal_sum / kDraws, 0.0, 5 / root);
  EXPECT_NEAR(normal_squares / kDraws, 1.0, 5 * std::sqrt(2.0) / root);
}

TEST(RandomTest, ShuffleKeepsEveryItemAndIsTheSameForASeed) {
  std::vector<int> items(100);
  std::iota(items.begin(), items.end(), 0);
  std::vector<int> once = items;
  std::vector<int> again = items;
  Random(5).shuffle(std::span<int>(once));
  Random(5).shuffle(std::span<int>(again));
  EXPECT_EQ(once, again);
  EXPECT_NE(once, items);
  EXPECT_EQ(std::set<int>(once.begin(), once.end()).size(), items.size());
  std::vector<int> none;
  Random(5).shuffle(std::span<int>(none));
}

TEST(DeriveSeedTest, EveryPartMatters) {
  std::set<std::uint64_t> seeds;
  std::size_t asked = 0;
  for (const std::uint64_t seed : {0u, 1u, 2u}) {
    for (const char* purpose : {"", "dropout", "shuffle"}) {
      for (const std::uint64_t step : {0u, 1u, 2u}) {
        for (const std::uint64_t rank : {0u, 1u, 2u}) {
          seeds.insert(derive_seed(seed, purpose, step, rank));
          ++asked;
        }
      }
    }
  }
  EXPECT_EQ(seeds.size(), asked);
  EXPECT_EQ(derive_seed(7, "dropout", 3), derive_seed(7, "dropout", 3));
}

}  // namespace
}  // namespace needle
