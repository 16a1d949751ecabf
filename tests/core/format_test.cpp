#include "needle/core/format.h"

#include <cstdint>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace needle {
namespace {

TEST(FormatTest, KnowsEveryArgumentType) {
  EXPECT_EQ(format("{} {} {} {} {} {} {}", true, 'c', -1, 2u, 0.5, "text", std::string("string")),
            "true c -1 2 0.5 text string");
  EXPECT_EQ(format("{}", std::numeric_limits<std::uint64_t>::max()), "18446744073709551615");
  EXPECT_EQ(format("{}", std::numeric_limits<std::int64_t>::min()), "-9223372036854775808");
  EXPECT_EQ(format("{}", std::filesystem::path("a/b")), "a/b");
  EXPECT_EQ(format("{:>6.2f}|{:04x}|{:<4}|", 3.14159, 255, "ab"), "  3.14|00ff|ab  |");
}

TEST(FormatTest, AWrongPatternDoesNotThrow) {
  EXPECT_THAT(format("{} {}", 1), testing::HasSubstr("{} {}"));
  EXPECT_THAT(format("{:d}", "text"), testing::HasSubstr("format"));
}

}  // namespace
}  // namespace needle
