#include "needle/calls/json_value.h"

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

TEST(JsonValueGolden, RewritesAsTheReference) {
  const Json cases = read_json_file(test::golden("data/compact_json.json"));
  ASSERT_FALSE(cases.empty());
  for (const Json& row : cases) {
    const auto text = row.at("in").get<std::string>();
    EXPECT_EQ(compact_json_text(text), row.at("out").get<std::string>()) << text;
  }
}

// Second column: json.dumps(json.loads(first), separators=(",", ":")) of CPython 3.11; unchanged
// where it refuses.
TEST(JsonValueTest, RewritesAsPython) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"0", "0"},
      {"1e16", "1e+16"},
      {"1e15", "1000000000000000.0"},
      {"123456789012345680.0", "1.2345678901234568e+17"},
      {"1e-4", "0.0001"},
      {"1e-5", "1e-05"},
      {"0.00001234", "1.234e-05"},
      {"1E+2", "100.0"},
      {"1e0", "1.0"},
      {"9007199254740993.0", "9007199254740992.0"},
      {"2.2250738585072014e-308", "2.2250738585072014e-308"},
      {"4.9e-324", "5e-324"},
      {"2e-324", "0.0"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"1.7976931348623159e308", "Infinity"},
      {"-1e999999999999999999999", "-Infinity"},
      {"1e-999999999999999999999", "0.0"},
      {"0e999999999999999999999", "0.0"},
      {"0.000000000000000000000000000000000000001e30", "1e-09"},
      {"[-0,-1]", "[0,-1]"},
      {"[1E400,-1E400]", "[Infinity,-Infinity]"},
      {"NaN", "NaN"},
      {"-NaN", "-NaN"},
      {"+1", "+1"},
      {"01", "01"},
      {"1.", "1."},
      {"1.e5", "1.e5"},
      {".5", ".5"},
      {"-", "-"},
      {"-Infinity", "-Infinity"},
      {"Infinit", "Infinit"},
      {"1e", "1e"},
      {"1e+", "1e+"},
      {"\"\\ud83c\\udf89\"", "\"\\ud83c\\udf89\""},
      {"\"\\ud83c\\u0041\"", "\"\\ud83cA\""},
      {"\"\\udf89\\ud83c\"", "\"\\udf89\\ud83c\""},
      {"\"\\ud83c\\ud83c\\udf89\"", "\"\\ud83c\\ud83c\\udf89\""},
      {"\"\\ud83cx\"", "\"\\ud83cx\""},
      {"\"\\ud83c\\n\"", "\"\\ud83c\\n\""},
      {"\"\\uD83C\\uDF89\"", "\"\\ud83c\\udf89\""},
      {"\"\\u00zz\"", "\"\\u00zz\""},
      {"\"\\u12\"", "\"\\u12\""},
      {"\"\\x41\"", "\"\\x41\""},
      {"\"\\ud83c\\u12\"", "\"\\ud83c\\u12\""},
      {"\"a\tb\"", "\"a\tb\""},
      {"\"a\nb\"", "\"a\nb\""},
      {"\"\177\"", "\"\\u007f\""},
      {"\"\342\200\250\302\240\"", "\"\\u2028\\u00a0\""},
      {"\"\\u0000\"", "\"\\u0000\""},
      {"\"\\b\\f\\n\\r\\t\\/\\\\\\\"\"", "\"\\b\\f\\n\\r\\t/\\\\\\\"\""},
      {"", ""},
      {"  ", "  "},
      {" 1 ", "1"},
      {"\t\r\n[ ]", "[]"},
      {"\302\2401", "\302\2401"},
      {"\357\273\2771", "\357\273\2771"},
      {"[1,]", "[1,]"},
      {"{\"a\":1,}", "{\"a\":1,}"},
      {"{,}", "{,}"},
      {"[,1]", "[,1]"},
      {"{\"a\"}", "{\"a\"}"},
      {"{\"a\":}", "{\"a\":}"},
      {"{1:2}", "{1:2}"},
      {"[1 2]", "[1 2]"},
      {"tru", "tru"},
      {"nul", "nul"},
      {"true false", "true false"},
      {"{\"a\":1,\"b\":2,\"a\":{\"c\":[]},\"b\":null}", "{\"a\":{\"c\":[]},\"b\":null}"},
      {"{\"\":1,\"\":2}", "{\"\":2}"},
      {"\"unterminated", "\"unterminated"},
      {"[\"a\"", "[\"a\""},
      {"{\"a\":1", "{\"a\":1"},
      {"1.0E-7", "1e-07"},
      {"100000000000000000000000.0", "1e+23"},
      {"0.1e1", "1.0"},
      {"12345678901234567890", "12345678901234567890"},
      {"-12345678901234567890.0", "-1.2345678901234567e+19"},
      {"1e21", "1e+21"},
      {"1e22", "1e+22"},
      {"1e23", "1e+23"},
      {"5e-324", "5e-324"},
      {"123e-7", "1.23e-05"},
      {"0.0001", "0.0001"},
      {"0.00012345", "0.00012345"},
      {"9999999999999998.0", "9999999999999998.0"},
      {"99999999999999990.0", "9.999999999999998e+16"},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_EQ(compact_json_text(text), expected) << text;
  }
}

TEST(JsonValueTest, RawUtf8KeepsCharactersAndEscapesLoneSurrogates) {
  const auto rewrite = [](std::string_view text) {
    return compact_json_text(text, JsonEscapes::kUtf8);
  };
  EXPECT_EQ(rewrite("\"\\u00e9\\ud83c\\udf89\""), "\"\xC3\xA9\xF0\x9F\x8E\x89\"");
  EXPECT_EQ(rewrite("\"\\ud83c!\""), "\"\\ud83c!\"");
  EXPECT_EQ(rewrite("\"\\u001f\x7F\\u2028\""), "\"\\u001f\x7F\xE2\x80\xA8\"");
}

TEST(JsonValueTest, WritersNeverGiveBrokenUtf8) {
  const JsonValue broken =
      JsonValue::array({JsonValue::string("a\xFF\xC3"), JsonValue::string("\xED\xA0\xBC")});
  EXPECT_EQ(write_compact(broken), "[\"a\\ufffd\\ufffd\",\"\\ud83c\"]");
  const std::string raw = write_compact(broken, JsonEscapes::kUtf8);
  EXPECT_TRUE(is_valid_utf8(raw)) << raw;
}

TEST(JsonValueTest, SpacedAndCanonicalForms) {
  const JsonValue value =
      *parse_json_value(R"({"b":[1,{"z":null,"a":true}],"a":"x","B":{}})").value;
  EXPECT_EQ(write_spaced(value), R"({"b": [1, {"z": null, "a": true}], "a": "x", "B": {}})");
  EXPECT_EQ(write_canonical(value), R"({"B":{},"a":"x","b":[1,{"a":true,"z":null}]})");
}

TEST(JsonValueTest, EqualityIgnoresKeyOrderAndTellsNumbersApart) {
  const auto parse = [](std::string_view text) { return *parse_json_value(text).value; };
  EXPECT_EQ(parse(R"({"a":1,"b":[2,{"c":3,"d":4}]})"), parse(R"({"b":[2,{"d":4,"c":3}],"a":1})"));
  EXPECT_EQ(parse("1e2"), parse("100.0"));
  EXPECT_NE(parse("5"), parse("5.0"));
  EXPECT_NE(parse("5"), parse("\"5\""));
  EXPECT_NE(parse("true"), parse("false"));
  EXPECT_NE(parse("[]"), parse("{}"));
  EXPECT_NE(parse("[1,2]"), parse("[2,1]"));
  EXPECT_NE(parse(R"({"a":1})"), parse(R"({"a":1,"b":1})"));
}

TEST(JsonValueTest, NestingIsBounded) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(parse_json_value(nested(kMaxJsonDepth)).value.has_value());
  const JsonParseResult refused = parse_json_value(nested(kMaxJsonDepth + 1));
  EXPECT_FALSE(refused.value.has_value());
  EXPECT_NE(refused.error.find("nested deeper than 200"), std::string::npos) << refused.error;
  EXPECT_FALSE(parse_json_value(std::string(1'000'000, '[')).value.has_value());
  EXPECT_FALSE(parse_json_value(std::string(1'000'000, '{')).value.has_value());
}

TEST(JsonValueTest, ErrorsSayLineAndColumn) {
  EXPECT_EQ(parse_json_value("[1 2]").error, "line 1 column 4: expected ',' or ']'");
  EXPECT_EQ(parse_json_value("{\n  \"\xC3\xA9\" 1}").error, "line 2 column 7: expected ':'");
  EXPECT_EQ(parse_json_value("[] x").error, "line 1 column 4: expected the end of the text");
  EXPECT_EQ(parse_json_value("\"\xFF\"").error, "line 1 column 2: the text is not valid UTF-8");
}

TEST(JsonValueTest, AccessorsRefuseAnotherKind) {
  const JsonValue text = JsonValue::string("5");
  EXPECT_THROW(text.as_bool(), Error);
  EXPECT_THROW(text.as_int64(), Error);
  EXPECT_THROW(text.as_double(), Error);
  EXPECT_THROW(text.number_text(), Error);
  EXPECT_THROW(text.items(), Error);
  EXPECT_THROW(text.members(), Error);
  EXPECT_THROW(JsonValue::integer(5).as_string(), Error);
  EXPECT_THROW(JsonValue::number(5).as_int64(), Error);
  EXPECT_THROW(JsonValue::array().set("a", {}), Error);
  EXPECT_EQ(text.find("a"), nullptr);
  EXPECT_THROW(JsonValue::number_from_text("1x"), Error);
  EXPECT_THROW(JsonValue::number_from_text(""), Error);
}

TEST(JsonValueTest, NumbersKeepTheirRange) {
  const auto parse = [](std::string_view text) { return *parse_json_value(text).value; };
  EXPECT_EQ(parse("-9223372036854775808").as_int64(), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(parse("9223372036854775808").as_int64(), std::nullopt);
  EXPECT_EQ(parse("9223372036854775808").as_double(), 9223372036854775808.0);
  EXPECT_TRUE(std::isnan(parse("NaN").as_double()));
  EXPECT_EQ(JsonValue::integer(-12).number_text(), "-12");
}

TEST(JsonValueTest, FloatsReadBackExactly) {
  Random random(11);
  for (int i = 0; i < 20'000; ++i) {
    const double value = std::bit_cast<double>(random.next_u64());
    const JsonValue number = JsonValue::number(value);
    const auto parsed = parse_json_value(number.number_text()).value;
    ASSERT_TRUE(parsed.has_value()) << number.number_text();
    EXPECT_EQ(parsed->number_text(), number.number_text());
    if (!std::isnan(value)) {
      EXPECT_EQ(parsed->as_double(), value);
    }
  }
}

TEST(JsonValueTest, SetReplacesInPlaceOrAppends) {
  JsonValue value = JsonValue::object({{"a", JsonValue::integer(1)}, {"b", JsonValue::integer(2)}});
  value.set("a", JsonValue::string("x"));
  value.set("c", JsonValue());
  EXPECT_EQ(write_compact(value), R"({"a":"x","b":2,"c":null})");
}

TEST(JsonValueTest, RepeatedKeysInLargeObjectsKeepTheFirstPlace) {
  std::string text = "{";
  for (int i = 0; i < 40; ++i) {
    text += "\"k" + std::to_string(i % 25) + "\":" + std::to_string(i) + (i < 39 ? "," : "}");
  }
  const JsonValue value = *parse_json_value(text).value;
  ASSERT_EQ(value.members().size(), 25U);
  for (std::size_t i = 0; i < 25; ++i) {
    EXPECT_EQ(value.members()[i].first, "k" + std::to_string(i));
    EXPECT_EQ(value.members()[i].second.as_int64(), static_cast<std::int64_t>(i < 15 ? i + 25 : i));
  }
}

// Random mutations of JSON and of bytes: never a crash, never broken UTF-8, and rewriting is
// idempotent.
TEST(JsonValueTest, SurvivesRandomText) {
  Random random(5);
  const std::string alphabet = "[]{}\",:\\u0d8c9eE+-.tnfalsr \n\xC3\xA9\xF0\x9F\xFF";
  const std::string seed_text =
      R"([{"name":"a","arguments":{"x":[1,2.5,-3e-7,"\ud83c\udf89\n"],"y":null}}])";
  int parsed_count = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = i % 2 == 0 ? seed_text : std::string(random.below(12), ' ');
    for (char& c : text) {
      if (i % 2 == 1 || random.below(40) == 0) {
        c = alphabet[random.below(static_cast<std::uint32_t>(alphabet.size()))];
      }
    }
    const JsonParseResult parsed = parse_json_value(text);
    if (parsed.value) {
      ++parsed_count;
      const std::string once = write_compact(*parsed.value, JsonEscapes::kUtf8);
      ASSERT_TRUE(is_valid_utf8(once)) << once;
      EXPECT_EQ(compact_json_text(once, JsonEscapes::kUtf8), once);
    } else {
      EXPECT_FALSE(parsed.error.empty());
      EXPECT_EQ(compact_json_text(text), text);
    }
  }
  EXPECT_GT(parsed_count, 100);  // the mutations do leave some valid
}

}  // namespace
}  // namespace needle
