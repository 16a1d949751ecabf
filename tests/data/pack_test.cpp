#include "needle/data/pack.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {
namespace {

using Rows = std::vector<std::vector<std::int64_t>>;

// The definition, row by row.
Rows first_fit_naive(const std::vector<ExampleLength>& lengths, const PackLimits& limits) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return lengths[a].encoder > lengths[b].encoder;
  });
  Rows rows;
  std::vector<ExampleLength> used;
  for (const std::size_t example : order) {
    std::size_t row = 0;
    while (row < rows.size() &&
           (used[row].encoder + lengths[example].encoder > limits.max_enc_len ||
            used[row].decoder + lengths[example].decoder > limits.max_dec_len)) {
      ++row;
    }
    if (row == rows.size()) {
      rows.emplace_back();
      used.emplace_back();
    }
    rows[row].push_back(static_cast<std::int64_t>(example));
    used[row].encoder += lengths[example].encoder;
    used[row].decoder += lengths[example].decoder;
  }
  return rows;
}

std::vector<ExampleLength> random_lengths(std::size_t count, const PackLimits& limits,
                                          std::uint64_t seed) {
  Random random(seed);
  std::vector<ExampleLength> lengths(count);
  for (ExampleLength& length : lengths) {
    length.encoder = 1 + random.below(static_cast<std::uint32_t>(limits.max_enc_len));
    length.decoder = 1 + random.below(static_cast<std::uint32_t>(limits.max_dec_len));
  }
  return lengths;
}

TEST(PackTest, FindsTheRowsOfThePlainDefinition) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const PackLimits limits{.max_enc_len = 5 + static_cast<std::int64_t>(seed),
                            .max_dec_len = 40 - static_cast<std::int64_t>(seed / 2)};
    const auto lengths = random_lengths(seed * 7, limits, seed);
    EXPECT_EQ(pack_rows(lengths, limits), first_fit_naive(lengths, limits)) << seed;
  }
}

TEST(PackTest, KeepsEveryExampleOnce) {
  const PackLimits limits{.max_enc_len = 64, .max_dec_len = 32};
  const auto lengths = random_lengths(500, limits, 3);
  std::vector<int> seen(lengths.size(), 0);
  for (const auto& row : pack_rows(lengths, limits)) {
    EXPECT_FALSE(row.empty());
    for (const std::int64_t example : row) {
      ++seen[static_cast<std::size_t>(example)];
    }
  }
  EXPECT_EQ(seen, std::vector<int>(lengths.size(), 1));
}

TEST(PackTest, NothingAndTooLongExamples) {
  EXPECT_TRUE(pack_rows({}, {}).empty());
  const std::vector<ExampleLength> lengths{{4, 4}, {4, 9}};
  EXPECT_THROW(pack_rows(lengths, {.max_enc_len = 8, .max_dec_len = 8}), Error);
}

TEST(PackTest, AHundredThousandExamplesTakeMoments) {
  const PackLimits limits{.max_enc_len = 1024, .max_dec_len = 128};
  Random random(5);
  std::vector<ExampleLength> lengths(100000);
  for (ExampleLength& length : lengths) {  // half of them full on one side, half on the other
    const bool wide = random.below(2) == 0;
    length = {.encoder = 1 + random.below(wide ? 900 : 30),
              .decoder = 1 + random.below(wide ? 6 : 100)};
  }
  const auto start = std::chrono::steady_clock::now();
  const Rows rows = pack_rows(lengths, limits);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  RecordProperty("milliseconds", static_cast<int>(seconds.count() * 1000));
  EXPECT_LT(rows.size(), lengths.size() / 2);
  EXPECT_LT(seconds.count(),
            20.0);  // about 0.1 s; comparing every example with every row is 10^9 steps
}

}  // namespace
}  // namespace needle
