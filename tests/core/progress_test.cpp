#include "needle/core/progress.h"

#include <cstdlib>
#include <string>
#include <thread>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace needle {
namespace {

TEST(ProgressTest, IsSilentWithoutATerminal) {
  testing::internal::CaptureStderr();
  {
    Progress progress("reading", 100, "rows");
    for (int i = 0; i < 100; ++i) {
      progress.advance();
      progress.note("x");
    }
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(ProgressTest, ShowsShareRateAndTimeLeft) {
  EXPECT_EQ(internal::progress_text({.title = "packing",
                                     .unit = "rows",
                                     .note = "loss 1.5",
                                     .done = 250,
                                     .total = 1000,
                                     .seconds = 10.0}),
            "packing [######..................]  25 %  250/1000 rows  25/s  0:30 left  loss 1.5");
  EXPECT_EQ(internal::progress_text(
                {.title = "x", .unit = "", .note = "", .done = 20, .total = 10, .seconds = 3700.0}),
            "x [########################] 100 %  20/10  0.0/s  1:01:40");
  EXPECT_EQ(
      internal::progress_text(
          {.title = "x", .unit = "B", .note = "", .done = 2'500'000, .total = 0, .seconds = 1.0}),
      "x 2.50 M B  2.50 M/s  0:01");
  EXPECT_EQ(internal::progress_text(
                {.title = "x", .unit = "", .note = "", .done = 0, .total = 5, .seconds = 0.0}),
            "x [........................]   0 %  0/5  0/s  0:00");
}

// On a terminal: nothing in the first two seconds, then redraws at most ten times a second.
TEST(ProgressTest, DrawsOnATerminalAfterTwoSeconds) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) {
    GTEST_SKIP() << "no pseudo-terminal here";
  }
  const int slave = open(ptsname(terminal), O_RDWR | O_NOCTTY);
  ASSERT_GE(slave, 0);
  const int before = dup(STDERR_FILENO);
  dup2(slave, STDERR_FILENO);
  std::size_t early_bytes = 0;
  std::string drawn(4096, '\0');
  {
    Progress progress("training", 1000);
    progress.advance();
    fcntl(terminal, F_SETFL, O_NONBLOCK);
    const ssize_t count = read(terminal, drawn.data(), drawn.size());
    early_bytes = count > 0 ? static_cast<std::size_t>(count) : 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(2050));
    for (int i = 0; i < 1000; ++i) {  // a burst: one draw
      progress.advance();
    }
  }
  dup2(before, STDERR_FILENO);
  close(before);
  const ssize_t count = read(terminal, drawn.data(), drawn.size());
  close(slave);
  close(terminal);
  ASSERT_GT(count, 0);
  drawn.resize(static_cast<std::size_t>(count));
  EXPECT_EQ(early_bytes, 0u);
  EXPECT_THAT(drawn, testing::HasSubstr("training ["));
  EXPECT_THAT(drawn, testing::EndsWith("\n"));
  std::size_t draws = 0;
  for (std::size_t at = drawn.find('\r'); at != std::string::npos; at = drawn.find('\r', at + 1)) {
    draws += drawn.compare(at, 4, "\r\x1b[K") == 0 ? 1 : 0;
  }
  EXPECT_LE(draws, 4u);  // the burst, perhaps a slow machine's second, and the end
}

}  // namespace
}  // namespace needle
