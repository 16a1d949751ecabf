#include "needle/core/log.h"

#include <algorithm>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace needle {
namespace {

std::string logged(LogLevel level) {
  testing::internal::CaptureStderr();
  set_log_level(level);
  log_debug("a {}", 1);
  log_info("b {}", 2);
  log_warning("c {{{}}} {{}}", 3);
  log_error("d {}", 4);
  set_log_level(LogLevel::kInfo);
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, WritesALinePerMessageFromItsLevelUp) {
  const std::string all = logged(LogLevel::kDebug);
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 4);
  EXPECT_THAT(all, testing::HasSubstr("debug: a 1\n"));
  EXPECT_THAT(all,
              testing::HasSubstr("warning: c {3} {}\n"));  // braces of a message are not a pattern
  const std::string some = logged(LogLevel::kWarning);
  EXPECT_THAT(some, testing::Not(testing::HasSubstr("b 2")));
  EXPECT_THAT(some, testing::HasSubstr("error: d 4\n"));
  EXPECT_EQ(logged(LogLevel::kOff), "");
}

TEST(LogTest, NothingGoesToStdout) {
  testing::internal::CaptureStdout();
  logged(LogLevel::kDebug);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
}

}  // namespace
}  // namespace needle
