#include "needle/calls/json_writer.h"

#include <limits>

#include <gtest/gtest.h>

namespace needle {
namespace {

TEST(JsonWriterTest, PutsCommasBetweenMembersAndItemsOnly) {
  JsonWriter json;
  json.begin_object().key("a").integer(-2).key("b").begin_array().end_array();
  json.key("c").begin_array().string("x").null().begin_object().end_object().raw("[1]").end_array();
  json.key("d").begin_object().key("e").value(JsonValue::boolean(true)).end_object();
  json.key("f").thousandths(1).end_object();
  EXPECT_EQ(json.text(), R"({"a":-2,"b":[],"c":["x",null,{},[1]],"d":{"e":true},"f":1.000})");
}

TEST(JsonWriterTest, WritesStringsAsWriteCompactDoes) {
  for (const std::string text : {"", "a\"b\\c\n\r\t\b\f\x01\x7f", "h\xc3\xa9\xf0\x9f\x8e\x89",
                                 "\xff"
                                 "a\xc3"}) {
    JsonWriter json;
    json.string(text);
    EXPECT_EQ(json.text(), write_compact(JsonValue::string(text), JsonEscapes::kUtf8));
    EXPECT_TRUE(parse_json_value(json.text()).value) << json.text();
  }
}

TEST(JsonWriterTest, RoundsToThousandths) {
  const auto written = [](double value) { return JsonWriter().thousandths(value).take(); };
  EXPECT_EQ(written(0), "0.000");
  EXPECT_EQ(written(0.0004), "0.000");
  EXPECT_EQ(written(-0.0004), "0.000");
  EXPECT_EQ(written(0.0006), "0.001");
  EXPECT_EQ(written(34.3719), "34.372");
  EXPECT_EQ(written(-1.25), "-1.250");
  EXPECT_EQ(written(9.9996), "10.000");
  EXPECT_EQ(written(1e20), "1e+20");
  EXPECT_EQ(written(std::numeric_limits<double>::infinity()), "Infinity");
}

}  // namespace
}  // namespace needle
