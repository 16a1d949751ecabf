#include "needle/train/stop_signal.h"

#include <csignal>

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

TEST(StopSignalTest, FirstSignalOnlyRaisesTheFlag) {
  const StopSignal stop;
  EXPECT_FALSE(stop.requested());
  EXPECT_STREQ(stop.name(), "");
  std::raise(SIGTERM);
  EXPECT_TRUE(stop.requested());
  EXPECT_STREQ(stop.name(), "SIGTERM");
}

TEST(StopSignalTest, SecondSignalEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const StopSignal stop;
        std::raise(SIGINT);
        std::raise(SIGINT);
      },
      testing::KilledBySignal(SIGINT), "");
}

TEST(StopSignalTest, OnlyOneLivesAndTheOldHandlerComesBack) {
  static volatile std::sig_atomic_t seen = 0;
  std::signal(SIGTERM, [](int) { seen = 1; });
  {
    const StopSignal stop;
    EXPECT_THROW(StopSignal(), Error);
    std::raise(SIGTERM);
    EXPECT_EQ(seen, 0);
  }
  std::raise(SIGTERM);
  EXPECT_EQ(seen, 1);
  std::signal(SIGTERM, SIG_DFL);
  EXPECT_FALSE(StopSignal().requested());  // a signal of before is forgotten
}

}  // namespace
}  // namespace needle
