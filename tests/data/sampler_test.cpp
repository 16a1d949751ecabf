#include "needle/data/sampler.h"

#include <algorithm>
#include <numeric>

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

std::vector<std::int64_t> sorted(std::vector<std::int64_t> rows) {
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<std::int64_t> up_to(std::int64_t count) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  return rows;
}

TEST(SamplerTest, EveryRowComesOnceAnEpochAndTheOrderChanges) {
  Sampler sampler({.row_count = 23, .batch_rows = 5});
  EXPECT_EQ(sampler.batches_per_epoch(), 5);
  std::vector<std::vector<std::int64_t>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    EXPECT_TRUE(sampler.at_epoch_start());
    std::vector<std::int64_t> rows;
    for (int batch = 0; batch < 5; ++batch) {
      const auto next = sampler.next();
      EXPECT_EQ(next.size(), batch < 4 ? 5u : 3u);
      rows.insert(rows.end(), next.begin(), next.end());
    }
    EXPECT_EQ(sorted(rows), up_to(23));
    epochs.push_back(rows);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  EXPECT_NE(epochs[0], up_to(23));
}

TEST(SamplerTest, AResumedSamplerGoesOnWhereItStopped) {
  const SamplerOptions options{.row_count = 17, .batch_rows = 4, .seed = 9};
  Sampler whole(options);
  for (int stop = 0; stop < 12; ++stop) {
    Sampler resumed(options, whole.state());
    Sampler ahead = whole;
    for (int i = 0; i < 7; ++i) {
      EXPECT_EQ(resumed.next(), ahead.next());
    }
    whole.next();
  }
  EXPECT_EQ(whole.state().epoch, 2);
  EXPECT_EQ(whole.state().position, 2);
}

TEST(SamplerTest, RanksShareEveryBatch) {
  for (const std::int64_t world : {2, 3, 4}) {
    std::vector<std::int64_t> rows;
    for (std::int64_t rank = 0; rank < world; ++rank) {
      Sampler sampler({.row_count = 35, .batch_rows = 3, .rank = rank, .world = world});
      for (std::int64_t batch = 0; batch < sampler.batches_per_epoch(); ++batch) {
        const auto next = sampler.next();
        EXPECT_FALSE(next.empty());
        rows.insert(rows.end(), next.begin(), next.end());
      }
    }
    EXPECT_EQ(sorted(rows), up_to(35)) << world;  // here every rank has a row of its own
  }
}

TEST(SamplerTest, OneRowIsABatchForEveryRank) {
  for (std::int64_t rank = 0; rank < 3; ++rank) {
    Sampler sampler({.row_count = 1, .batch_rows = 64, .rank = rank, .world = 3});
    EXPECT_EQ(sampler.next(), std::vector<std::int64_t>{0});
    EXPECT_EQ(sampler.next(), std::vector<std::int64_t>{0});
    EXPECT_EQ(sampler.state().epoch, 2);
  }
}

TEST(SamplerTest, FileOrderAndSeeds) {
  Sampler in_order({.row_count = 6, .batch_rows = 6, .shuffle = false});
  EXPECT_EQ(in_order.next(), up_to(6));
  Sampler a({.row_count = 50, .batch_rows = 50, .seed = 1});
  Sampler b({.row_count = 50, .batch_rows = 50, .seed = 2});
  EXPECT_NE(a.next(), b.next());
}

TEST(SamplerTest, NonsenseIsRefused) {
  EXPECT_THROW(Sampler({.row_count = 0}), Error);
  EXPECT_THROW(Sampler({.row_count = 5, .batch_rows = 0}), Error);
  EXPECT_THROW(Sampler({.row_count = 5, .rank = 2, .world = 2}), Error);
  EXPECT_THROW(Sampler({.row_count = 5, .batch_rows = 5}, {.epoch = 0, .position = 1}), Error);
  EXPECT_THROW(Sampler({.row_count = 5}, {.epoch = -1, .position = 0}), Error);
}

}  // namespace
}  // namespace needle
