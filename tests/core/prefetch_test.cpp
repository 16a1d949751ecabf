#include "needle/core/prefetch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

namespace needle {
namespace {

using namespace std::chrono_literals;

TEST(PrefetchTest, ValuesComeInOrderAndNoMoreThanDepthAhead) {
  std::atomic<int> taken = 0;
  std::atomic<int> most_ahead = 0;
  Prefetch<int> values(
      [&, next = 0]() mutable {
        most_ahead = std::max(most_ahead.load(), next - taken.load());
        return next++;
      },
      3);
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(values.next(), i);
    ++taken;
  }
  std::this_thread::sleep_for(20ms);  // the reader has time to run ahead, and must not
  EXPECT_LE(most_ahead, 4);           // three ready, and a next() whose count is not taken yet
  EXPECT_GE(most_ahead, 2);
}

TEST(PrefetchTest, AnExceptionComesOutInItsTurnAndAgain) {
  Prefetch<int> values(
      [next = 0]() mutable {
        if (next == 2) {
          throw std::runtime_error("row 2 is bad");
        }
        return next++;
      },
      4);
  std::this_thread::sleep_for(10ms);  // it was thrown long before it is asked for
  EXPECT_EQ(values.next(), 0);
  EXPECT_EQ(values.next(), 1);
  for (int i = 0; i < 2; ++i) {
    try {
      values.next();
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), std::string("row 2 is bad"));
    }
  }
}

TEST(PrefetchTest, EndsWhileTheReaderWaitsOrWorks) {
  const auto alive = std::make_shared<int>(0);
  {
    Prefetch<std::unique_ptr<int>> full([alive] { return std::make_unique<int>(*alive); }, 1);
    EXPECT_EQ(*full.next(), 0);
    Prefetch<int> busy(
        [alive] {
          std::this_thread::sleep_for(20ms);
          return *alive;
        },
        1);
  }
  EXPECT_EQ(alive.use_count(), 1);  // nobody runs any more
}

TEST(PrefetchTest, WhatIsMadeInTimeIsNotWaitedFor) {
  Prefetch<int> values([] { return std::this_thread::sleep_for(10ms), 1; }, 2);
  values.next();
  double waited_ms = 0.0;
  for (int i = 0; i < 10; ++i) {
    std::this_thread::sleep_for(40ms);  // a step
    const auto start = std::chrono::steady_clock::now();
    values.next();
    waited_ms +=
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  EXPECT_LT(waited_ms, 50.0);  // 100 without a reader of its own
}

}  // namespace
}  // namespace needle
