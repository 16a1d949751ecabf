#include "needle/calls/utf8.h"

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

TEST(Utf8Test, EveryCodePointGoesThereAndBack) {
  for (std::uint32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    std::string text;
    append_utf8(text, code_point);
    if (code_point >= 0xD800 && code_point < 0xE000) {
      ASSERT_EQ(utf8_length_at(text, 0), 0U) << code_point;  // surrogates are not characters
      continue;
    }
    ASSERT_EQ(utf8_length_at(text, 0), text.size()) << code_point;
    ASSERT_EQ(utf8_code_point_at(text, 0), code_point);
    ASSERT_EQ(utf8_length_at(std::string_view(text).substr(0, text.size() - 1), 0), 0U)
        << code_point;
  }
}

TEST(Utf8Test, RefusesOverlongAndOutOfRange) {
  for (const std::string_view text :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xFF", "\xC3\x28"}) {
    EXPECT_EQ(utf8_length_at(text, 0), 0U) << text;
    EXPECT_FALSE(is_valid_utf8(text));
  }
  EXPECT_TRUE(is_valid_utf8(""));
  EXPECT_THROW(utf8_code_point_at("\xFF", 0), Error);
}

TEST(Utf8Test, ReplacesEachBrokenByte) {
  EXPECT_EQ(replace_invalid_utf8("a\xF0\x9F\xC3\xA9"), "a\xEF\xBF\xBD\xEF\xBF\xBD\xC3\xA9");
  EXPECT_EQ(replace_invalid_utf8("plain"), "plain");
}

}  // namespace
}  // namespace needle
