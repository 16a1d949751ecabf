#include "needle/eval/loose_value.h"

#include <string>

#include <gtest/gtest.h>

namespace needle {
namespace {

std::string loose(const std::string& text) {
  const JsonValue value = loosen_value(JsonValue::string(text));
  EXPECT_TRUE(value.is_string());
  return value.as_string();
}

TEST(LooseValueTest, NumbersInTextTakePythonsForm) {
  EXPECT_EQ(loose("74.0060"), "74.006");
  EXPECT_EQ(loose("5"), "5.0");
  EXPECT_EQ(loose(" +1_000.50 "), "1000.5");
  EXPECT_EQ(loose("1e22"), "1e+22");
  EXPECT_EQ(loose(".5"), "0.5");
  EXPECT_EQ(loose("5."), "5.0");
  EXPECT_EQ(loose("-INF"), "-inf");
  EXPECT_EQ(loose("Infinity"), "inf");
  EXPECT_EQ(loose("NaN"), "nan");
  EXPECT_EQ(loose("1e999"), "inf");
  EXPECT_EQ(loose("00012"), "12.0");
}

TEST(LooseValueTest, WhatIsNoNumberStaysText) {
  for (const std::string text : {"", "1__0", "_1", "1_", "e5", "1e", "1e+", ".", "+", "--1", "0x10",
                                 "1.2.3", "1 2", "infin"}) {
    EXPECT_EQ(loose(text), text);
  }
}

TEST(LooseValueTest, TextLosesCaseEdgesAndOpenings) {
  EXPECT_EQ(loose("  Paris\n"), "paris");
  EXPECT_EQ(loose("at 21:00"), "21:00");
  EXPECT_EQ(loose("Today at 21:00"), "21:00");
  EXPECT_EQ(loose("today at at 9"), "at 9");
  EXPECT_EQ(loose("attic"), "attic");
  EXPECT_EQ(loose("\u00A0\u3000CAF\u00C9\u2003"), "caf\u00E9");
  EXPECT_EQ(loose("\u041C\u041E\u0421\u041A\u0412\u0410 \u0391\u0398 \u0141"),
            "\u043C\u043E\u0441\u043A\u0432\u0430 \u03B1\u03B8 \u0142");
}

TEST(LooseValueTest, FloatsBecomeTextAndTheRestStays) {
  EXPECT_EQ(loosen_value(JsonValue::number(5.0)), JsonValue::string("5.0"));
  EXPECT_EQ(loosen_value(JsonValue::integer(5)), JsonValue::integer(5));
  EXPECT_EQ(loosen_value(JsonValue::boolean(true)), JsonValue::boolean(true));
  EXPECT_EQ(loosen_value(JsonValue()), JsonValue());
  const JsonValue list = JsonValue::array({JsonValue::string("A")});
  EXPECT_EQ(loosen_value(list), list) << "top level only";
}

}  // namespace
}  // namespace needle
