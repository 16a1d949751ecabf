#include "needle/core/thread_pool.h"

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace needle {
namespace {

TEST(ThreadPoolTest, CoversEveryItemOnce) {
  for (const std::size_t threads : {1u, 2u, 3u, 8u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.thread_count(), threads);
    for (const std::size_t count : {0u, 1u, 2u, 7u, 8u, 9u, 1000u}) {
      for (const std::size_t grain : {0u, 1u, 3u, 2000u}) {
        std::vector<std::atomic<int>> hits(count);
        pool.parallel_for(count, grain, [&](std::size_t begin, std::size_t end) {
          ASSERT_LT(begin, end);
          for (std::size_t i = begin; i < end; ++i) {
            ++hits[i];
          }
        });
        for (const auto& hit : hits) {
          ASSERT_EQ(hit.load(), 1);
        }
      }
    }
  }
}

using Chunks = std::set<std::pair<std::size_t, std::size_t>>;

Chunks chunks_of(ThreadPool& pool, std::size_t count, std::size_t grain) {
  Chunks chunks;
  std::mutex mutex;
  pool.parallel_for(count, grain, [&](std::size_t begin, std::size_t end) {
    const std::lock_guard lock(mutex);
    chunks.emplace(begin, end);
  });
  return chunks;
}

TEST(ThreadPoolTest, BordersDependOnCountGrainAndThreadsAlone) {
  ThreadPool pool(3);
  EXPECT_EQ(chunks_of(pool, 10, 1), (Chunks{{0, 4}, {4, 7}, {7, 10}}));
  EXPECT_EQ(chunks_of(pool, 10, 5), (Chunks{{0, 5}, {5, 10}}));
  EXPECT_EQ(chunks_of(pool, 10, 6), (Chunks{{0, 10}}));
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(chunks_of(pool, 10, 1), (Chunks{{0, 4}, {4, 7}, {7, 10}}));
  }
}

TEST(ThreadPoolTest, NestedCallsRunInOrderOnTheSameThread) {
  ThreadPool pool(4);
  std::atomic<int> wrong{0};
  pool.parallel_for(4, 1, [&](std::size_t, std::size_t) {
    const auto self = std::this_thread::get_id();
    std::size_t expected = 0;
    pool.parallel_for(8, 1, [&](std::size_t begin, std::size_t end) {
      wrong += self != std::this_thread::get_id() || begin != expected;
      expected = end;
    });
    wrong += expected != 8;
  });
  EXPECT_EQ(wrong.load(), 0);
}

TEST(ThreadPoolTest, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    EXPECT_THROW(
        pool.parallel_for(3, 1, [](std::size_t, std::size_t) { throw std::runtime_error("no"); }),
        std::runtime_error);
    EXPECT_THROW(
        pool.parallel_for(1, 1, [](std::size_t, std::size_t) { throw std::logic_error("no"); }),
        std::logic_error);
    std::atomic<std::size_t> sum{0};
    pool.parallel_for(100, 1, [&](std::size_t begin, std::size_t end) { sum += end - begin; });
    EXPECT_EQ(sum.load(), 100u);
  }
}

TEST(ThreadPoolTest, CallersTakeTurns) {
  ThreadPool pool(2);
  std::atomic<std::size_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        pool.parallel_for(10, 1, [&](std::size_t begin, std::size_t end) { sum += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(sum.load(), 4u * 50 * 10);
}

}  // namespace
}  // namespace needle
