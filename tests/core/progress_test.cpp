#include "needle/core/progress.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
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
  ssize_t early_bytes = 0;
  std::string drawn;
  const auto start = std::chrono::steady_clock::now();
  {
    Progress progress("training", 1000);
    progress.advance();
    fcntl(terminal, F_SETFL, O_NONBLOCK);
    char piece[256];
    early_bytes = std::max<ssize_t>(read(terminal, piece, sizeof piece), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(2050));
    for (int i = 0; i < 1000; ++i) {  // a burst: one draw, unless the machine is slow
      progress.advance();
    }
  }
  dup2(before, STDERR_FILENO);
  close(before);
  drawn.clear();
  pollfd ready{.fd = terminal, .events = POLLIN, .revents = 0};
  while (!drawn.ends_with('\n') && poll(&ready, 1, /*timeout_ms=*/1000) == 1) {
    char piece[256];
    const ssize_t count = read(terminal, piece, sizeof piece);
    if (count <= 0) {
      break;
    }
    drawn.append(piece, static_cast<std::size_t>(count));
  }
  close(slave);
  close(terminal);
  EXPECT_EQ(early_bytes, 0);
  EXPECT_THAT(drawn, testing::HasSubstr("training ["));
  EXPECT_THAT(drawn, testing::EndsWith("\n"));
  std::size_t draws = 0;
  for (std::size_t at = drawn.find('\r'); at != std::string::npos; at = drawn.find('\r', at + 1)) {
    draws += drawn.compare(at, 4, "\r\x1b[K") == 0 ? 1 : 0;
  }
  const auto drawing = std::chrono::steady_clock::now() - start - std::chrono::seconds(2);
  EXPECT_LE(draws, 2u + static_cast<std::size_t>(drawing / std::chrono::milliseconds(100)));
}

}  // namespace
}  // namespace needle
