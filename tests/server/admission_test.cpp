#include "needle/server/admission.h"

#include <atomic>
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

TEST(AdmissionTest, NeverMoreRunThanMayAndEverybodyHasATurn) {
  Admission admission(2, 100);
  std::atomic<int> running = 0, most = 0, done = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 50; ++j) {
        const auto ticket = admission.enter(in_ms(30'000), never);
        if (ticket.outcome() == Outcome::kAdmitted) {
          const int now = ++running;
          int seen = most;
          while (now > seen && !most.compare_exchange_weak(seen, now)) {
          }
          --running;
          ++done;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(done, 800);
  EXPECT_LE(most, 2);
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
  EXPECT_EQ(one_waits.waiting(), 0U);
  one_waits.close();
  EXPECT_EQ(one_waits.enter(in_ms(1000), never).outcome(), Outcome::kClosed);
}

}  // namespace
}  // namespace needle
