#include "needle/core/spin_barrier.h"

#include <vector>

#include <gtest/gtest.h>

#include "needle/core/thread_pool.h"

namespace needle {
namespace {

// Also with more threads than this machine has cores.
TEST(SpinBarrierTest, NobodySeesARoundBeforeAllHaveEndedTheLast) {
  for (const std::size_t threads : {1u, 2u, 3u, 7u}) {
    ThreadPool pool(threads);
    SpinBarrier barrier(threads);
    std::vector<int> rounds(threads);  // each written by its thread alone
    std::vector<int> failures(threads);
    pool.run_team([&](std::size_t index, std::size_t count) {
      for (int round = 1; round <= 50; ++round) {
        rounds[index] = round;
        barrier.wait(index);
        for (std::size_t other = 0; other < count; ++other) {
          failures[index] += rounds[other] != round;
        }
        barrier.wait(index);
      }
    });
    EXPECT_EQ(rounds, std::vector<int>(threads, 50));
    EXPECT_EQ(failures, std::vector<int>(threads, 0));
  }
}

TEST(SpinBarrierTest, ATeamWithinATeamIsOneThread) {
  ThreadPool pool(3);
  std::vector<std::size_t> sizes(3);
  pool.run_team([&](std::size_t index, std::size_t count) {
    EXPECT_EQ(count, 3u);
    pool.run_team([&](std::size_t inner, std::size_t inner_count) {
      EXPECT_EQ(inner, 0u);
      sizes[index] = inner_count;
    });
  });
  EXPECT_EQ(sizes, std::vector<std::size_t>(3, 1));
}

}  // namespace
}  // namespace needle
