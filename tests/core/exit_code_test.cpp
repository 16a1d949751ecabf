#include "needle/core/exit_code.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"

namespace needle {
namespace {

struct Outcome {
  int code;
  std::string text;
};

Outcome outcome_of(const std::function<void()>& body) {
  testing::internal::CaptureStderr();
  const int code = run_main(body);
  return {code, testing::internal::GetCapturedStderr()};
}

TEST(ExitCodeTest, FollowsTheException) {
  EXPECT_EQ(outcome_of([] {}).code, 0);
  EXPECT_EQ(outcome_of([] {}).text, "");
  const Outcome failed = outcome_of([] { throw DataError("rows.jsonl:3: no query"); });
  EXPECT_EQ(failed.code, 1);
  EXPECT_EQ(failed.text, "error: rows.jsonl:3: no query\n");
  EXPECT_EQ(outcome_of([] { throw ConfigError("x"); }).code, 2);
  EXPECT_EQ(outcome_of([] { throw FileError("x"); }).code, 1);
  EXPECT_EQ(outcome_of([] { throw std::runtime_error("x"); }).code, 1);
  EXPECT_EQ(outcome_of([] { throw std::bad_alloc(); }).text, "error: out of memory\n");
  EXPECT_EQ(outcome_of([] { throw 5; }).code, 1);
  const Outcome stopped = outcome_of([] { throw Interrupted("saved step 10"); });
  EXPECT_EQ(stopped.code, 130);
  EXPECT_EQ(stopped.text, "interrupted: saved step 10\n");
}

// As c10::Error::what() has it.
constexpr const char* kWithBacktrace =
    "no kernel\n  for this device\nException raised from run at a.cpp:7 (most recent call first):\n"
    "frame #0: main + 0x1 (0x2 in program)\n";

TEST(ExitCodeTest, BacktracesAreForThoseWhoDebug) {
  const auto fail = [] { throw std::runtime_error(kWithBacktrace); };
  const Outcome failed = outcome_of(fail);
  EXPECT_EQ(failed.code, 1);
  EXPECT_EQ(failed.text, "error: no kernel\n  for this device\n");
  ::setenv("NEEDLE_LOG", "debug", 1);
  const Outcome debugged = outcome_of(fail);
  ::unsetenv("NEEDLE_LOG");
  EXPECT_EQ(debugged.code, 1);
  EXPECT_EQ(debugged.text, std::string("error: ") + kWithBacktrace + "\n");
}

TEST(ExitCodeTest, ResultsThatCannotBeWrittenAreAnError) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (full < 0) {
    GTEST_SKIP() << "no /dev/full here";
  }
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    dup2(full, STDOUT_FILENO);
    _exit(run_main([] { std::printf("a result\n"); }));
  }
  close(full);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

}  // namespace
}  // namespace needle
