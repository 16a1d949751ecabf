#include "needle/calls/strip.h"

#include <gtest/gtest.h>

namespace needle {
namespace {

TEST(StripEdgesTest, RemovesWhatPythonsStripRemoves) {
  EXPECT_EQ(strip_edges(" \t\n a b \r\f"), "a b");
  EXPECT_EQ(strip_edges("   "), "");
  EXPECT_EQ(strip_edges(""), "");
  EXPECT_EQ(strip_edges("\u2028x\u00E9\u3000"), "x\u00E9");
  EXPECT_EQ(strip_edges("\x1C.\x1F"), ".");
}

TEST(StripEdgesTest, BrokenBytesAreNoSpace) {
  EXPECT_EQ(strip_edges("\x80 x \xC3"), "\x80 x \xC3");
  EXPECT_EQ(strip_edges(" \x80\x80\x80\x80\x80 "), "\x80\x80\x80\x80\x80");
}

}  // namespace
}  // namespace needle
