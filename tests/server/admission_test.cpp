#include "needle/server/admission.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace needle {
namespace {

using Outcome = Admission::Outcome;

Admission::Clock::time_point in_ms(int ms) {
  return Admission::Clock::now() + std::chrono::milliseconds(ms);
}
bool never() { return false; }

// Half of them on their own threads, half on the admission's.
TEST(AdmissionTest, NeverMoreRunThanMayAndEverybodyHasATurn) {
  Admission admission(2, 100);
  std::atomic<int> running = 0, most = 0, done = 0;
  const auto work = [&] {
    const int now = ++running;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    std::this_thread::yield();
    --running;
    ++done;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 50; ++j) {
        if ((i + j) % 2 == 0) {
          EXPECT_EQ(admission.run(in_ms(30'000), never, work), Outcome::kAdmitted);
        } else if (admission.enter(in_ms(30'000), never).outcome() == Outcome::kAdmitted) {
          ++done;
        }
        if (const auto ticket = admission.enter(in_ms(30'000), never);
            ticket.outcome() == Outcome::kAdmitted) {
          work();
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(done, 1600);
  EXPECT_EQ(most, 2);
  EXPECT_EQ(admission.running(), 0U);
}

TEST(AdmissionTest, WorkThatWaitedComesInOrderAndMayThrow) {
  Admission admission(1, 10);
  std::vector<int> order;
  std::vector<std::thread> threads;
  {
    const auto held = admission.enter(in_ms(30'000), never);
    for (int i = 0; i < 6; ++i) {
      threads.emplace_back([&, i] {
        const auto work = [&, i] {
          order.push_back(i);
          if (i == 2) {
            throw std::runtime_error("mine");
          }
        };
        if (i == 2) {
          EXPECT_THROW(admission.run(in_ms(30'000), never, work), std::runtime_error);
        } else if (i == 4) {
          const auto ticket = admission.enter(in_ms(30'000), never);
          work();
        } else {
          EXPECT_EQ(admission.run(in_ms(30'000), never, work), Outcome::kAdmitted);
        }
      });
      while (admission.waiting() < static_cast<std::size_t>(i) + 1) {
        std::this_thread::yield();
      }
    }
    EXPECT_TRUE(order.empty());
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(admission.running(), 0U);
  // With nobody waiting it is the caller's own thread, which may throw as well.
  EXPECT_THROW(admission.run(in_ms(1000), never, [] { throw std::runtime_error("mine"); }),
               std::runtime_error);
  EXPECT_EQ(admission.running(), 0U);
}

TEST(AdmissionTest, TurnsAwayWhoFindsItFullComesTooLateOrIsGone) {
  Admission none_waits(1, 0);
  const auto first = none_waits.enter(in_ms(1000), never);
  EXPECT_EQ(first.outcome(), Outcome::kAdmitted);
  EXPECT_EQ(none_waits.enter(in_ms(1000), never).outcome(), Outcome::kFull);

  Admission one_waits(1, 1);
  const auto held = one_waits.enter(in_ms(1000), never);
  EXPECT_EQ(one_waits.enter(in_ms(5), never).outcome(), Outcome::kLate);
  EXPECT_EQ(one_waits.enter(in_ms(1000), [] { return true; }).outcome(), Outcome::kGone);
  bool done = false;
  const auto work = [&] { done = true; };
  EXPECT_EQ(one_waits.run(in_ms(5), never, work), Outcome::kLate);
  EXPECT_EQ(one_waits.run(
                in_ms(1000), [] { return true; }, work),
            Outcome::kGone);
  EXPECT_FALSE(done);
  EXPECT_EQ(one_waits.waiting(), 0U);
  one_waits.close();
  EXPECT_EQ(one_waits.enter(in_ms(1000), never).outcome(), Outcome::kClosed);
}

}  // namespace
}  // namespace needle
