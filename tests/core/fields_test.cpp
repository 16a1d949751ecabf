#include "needle/core/fields.h"

#include <cstdint>
#include <limits>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {

enum class Shade { kLight, kDark };
inline constexpr EnumNames<Shade, 2> kShadeNames{
    {{{Shade::kLight, "light"}, {Shade::kDark, "dark"}}}};
template <>
struct EnumTable<Shade> {
  static constexpr const auto& value = kShadeNames;
};

namespace {

struct Inner {
  double rate = 0.5;
  std::optional<std::int64_t> limit;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("rate", self.rate, "A rate");
    visit("limit", self.limit, "A limit");
  }
  bool operator==(const Inner&) const = default;
};

struct Outer {
  bool flag = true;
  std::int64_t count = 3;
  std::uint8_t small = 7;
  std::uint64_t large = 0;
  std::string name = "x";
  std::filesystem::path folder = "data";
  Shade shade = Shade::kLight;
  std::vector<std::int64_t> sizes = {1, 2};
  std::vector<bool> switches;
  std::vector<Inner> parts;
  Inner inner;
  std::optional<Inner> maybe;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("flag", self.flag, "A flag");
    visit("count", self.count, "A count");
    visit("small", self.small, "A byte");
    visit("large", self.large, "A large number");
    visit("name", self.name, "A name");
    visit("folder", self.folder, "A folder");
    visit("shade", self.shade, "A shade");
    visit("sizes", self.sizes, "Sizes");
    visit("switches", self.switches, "Switches");
    visit("parts", self.parts, "Parts");
    visit("inner", self.inner, "Inner");
    visit("maybe", self.maybe, "Perhaps");
  }
  bool operator==(const Outer&) const = default;
};

Outer read(std::string_view text) { return from_json<Outer>(parse_json(text, "text"), "run.json"); }

std::string message_of(std::string_view text) {
  try {
    read(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

Outer filled() {
  Outer value;
  value.flag = false;
  value.count = std::numeric_limits<std::int64_t>::min();
  value.small = 255;
  value.large = std::numeric_limits<std::uint64_t>::max();
  value.name = "é \"quoted\"";
  value.folder = "a/b";
  value.shade = Shade::kDark;
  value.sizes = {};
  value.switches = {true, false};
  value.parts = {{.rate = 0.1, .limit = 4}, {}};
  value.inner = {.rate = -1e-300, .limit = -1};
  value.maybe = Inner{.rate = 2.0, .limit = {}};
  return value;
}

TEST(FieldsTest, WhatIsWrittenIsRead) {
  for (const Outer& value : {Outer{}, filled()}) {
    EXPECT_EQ(from_json<Outer>(to_json(value), "memory"), value);
    EXPECT_EQ(read(to_json(value).dump()), value);
  }
}

struct Counted {
  CountOrAuto parts;
  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("parts", self.parts, "How many");
  }
};

TEST(FieldsTest, ACountMayBeAuto) {
  Counted value;
  apply_override(value, "parts=12");
  EXPECT_EQ(value.parts, (CountOrAuto{.count = 12}));
  EXPECT_EQ(to_json(value).dump(), R"({"parts":12})");
  apply_override(value, "parts=auto");
  EXPECT_TRUE(value.parts.is_auto);
  EXPECT_EQ(to_json(value).dump(), R"({"parts":"auto"})");
  EXPECT_EQ(from_json<Counted>(to_json(value), "file").parts, value.parts);
  for (const char* wrong : {"parts=many", "parts=-1", "parts=1.5"}) {
    EXPECT_THROW(apply_override(value, wrong), ConfigError) << wrong;
  }
  EXPECT_EQ(describe_fields<Counted>().front().type, "integer or auto");
}

TEST(FieldsTest, AbsentFieldsKeepTheDefaults) {
  Outer defaults = filled();
  const Outer value = from_json<Outer>(Json{{"inner", {{"rate", 9.0}}}}, "text", defaults);
  defaults.inner.rate = 9.0;
  EXPECT_EQ(value, defaults);
  EXPECT_EQ(value.inner.limit, -1);  // not reset by an object that does not name it
}

TEST(FieldsTest, NullEmptiesAnOptional) {
  EXPECT_EQ(from_json<Outer>(Json{{"maybe", nullptr}}, "text", filled()).maybe, std::nullopt);
}

TEST(FieldsTest, AnUnknownKeyNamesTheNearest) {
  EXPECT_EQ(message_of(R"({"cuont": 1})"),
            "run.json: \"cuont\": unknown field; did you mean \"count\"?");
  EXPECT_EQ(message_of(R"({"inner": {"limits": 1}})"),
            "run.json: inner.\"limits\": unknown field; did you mean \"limit\"?");
  EXPECT_THAT(message_of(R"({"inner": {"zebra": 1}})"),
              testing::HasSubstr("known here: rate, limit"));
}

TEST(FieldsTest, AWrongTypeTellsPathExpectedAndGot) {
  EXPECT_EQ(message_of(R"({"inner": {"rate": "fast"}})"),
            "run.json: inner.rate: expected a number, got \"fast\"");
  EXPECT_EQ(message_of(R"({"sizes": [1, 2.5]})"),
            "run.json: sizes[1]: expected an integer, got 2.5");
  EXPECT_EQ(message_of(R"({"parts": [{}, {"limit": []}]})"),
            "run.json: parts[1].limit: expected an integer, got a list");
  EXPECT_EQ(message_of(R"({"flag": 1})"), "run.json: flag: expected true or false, got 1");
  EXPECT_EQ(message_of(R"({"name": null})"), "run.json: name: expected a string, got null");
  EXPECT_EQ(message_of(R"({"inner": 3})"), "run.json: inner: expected an object, got 3");
  EXPECT_EQ(message_of(R"({"shade": "grey"})"),
            "run.json: shade: expected one of light, dark, got \"grey\"");
  EXPECT_EQ(message_of("[]"), "run.json: expected an object, got a list");
}

TEST(FieldsTest, RefusesIntegersOutOfRange) {
  EXPECT_EQ(message_of(R"({"small": 256})"),
            "run.json: small: expected an integer from 0 to 255, got 256");
  EXPECT_THAT(message_of(R"({"small": -1})"), testing::HasSubstr("from 0 to 255"));
  EXPECT_THAT(message_of(R"({"count": 9223372036854775808})"),
              testing::HasSubstr("got 9223372036854775808"));
  EXPECT_THAT(message_of(R"({"count": 1e30})"), testing::HasSubstr("expected an integer"));
  EXPECT_EQ(read(R"({"count": -9223372036854775808})").count,
            std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(read(R"({"large": 18446744073709551615})").large,
            std::numeric_limits<std::uint64_t>::max());
}

TEST(FieldsTest, AMessageDoesNotRepeatAWholeFile) {
  const std::string message = message_of("{\"count\": \"" + std::string(100'000, 'x') + "\"}");
  EXPECT_LT(message.size(), 200u);
}

TEST(FieldsTest, OverridesFollowThePath) {
  Outer value;
  apply_override(value, "inner.rate=0.25");
  apply_override(value, "sizes=[4, 5]");
  apply_override(value, "shade=dark");  // not JSON: a string
  apply_override(value, "name=true");   // JSON, but the field is text
  apply_override(value, "folder=/a=b");
  apply_override(value, "maybe.limit=3");
  EXPECT_EQ(value.inner.rate, 0.25);
  EXPECT_EQ(value.sizes, (std::vector<std::int64_t>{4, 5}));
  EXPECT_EQ(value.shade, Shade::kDark);
  EXPECT_EQ(value.name, "true");
  EXPECT_EQ(value.folder, "/a=b");
  EXPECT_EQ(value.maybe, (Inner{.rate = 0.5, .limit = 3}));
  apply_override(value, "maybe=null");
  EXPECT_EQ(value.maybe, std::nullopt);
  apply_override(value, "name=");
  EXPECT_EQ(value.name, "");
}

TEST(FieldsTest, AWrongOverrideChangesNothing) {
  for (const char* assignment : {"inner.rat=1", "count=many", "count", "=3", "inner..rate=1",
                                 ".count=1", "inner.=1", "count.x=1", "inner=3", "small=300"}) {
    Outer value;
    EXPECT_THROW(apply_override(value, assignment), ConfigError) << assignment;
    EXPECT_EQ(value, Outer{}) << assignment;
  }
  Outer value;
  try {
    apply_override(value, "inner.rat=1");
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()),
              "--set inner.rat=1: inner.\"rat\": unknown field; did you mean \"rate\"?");
  }
}

TEST(FieldsTest, DescribesEveryLeaf) {
  const std::vector<FieldDoc> rows = describe_fields(Outer{});
  std::vector<std::string> paths;
  for (const FieldDoc& row : rows) {
    paths.push_back(row.path);
    EXPECT_FALSE(row.description.empty()) << row.path;
    EXPECT_NO_THROW(parse_json(row.default_value, row.path));
  }
  EXPECT_EQ(paths, (std::vector<std::string>{"flag", "count", "small", "large", "name", "folder",
                                             "shade", "sizes", "switches", "parts", "parts[].rate",
                                             "parts[].limit", "inner.rate", "inner.limit", "maybe",
                                             "maybe.rate", "maybe.limit"}));
  EXPECT_EQ(rows[6].type, "one of light, dark");
  EXPECT_EQ(rows[7].type, "list of integer");
  EXPECT_EQ(rows[7].default_value, "[1,2]");
  EXPECT_EQ(rows[11].type, "integer or null");
  EXPECT_EQ(rows[11].default_value, "null");
}

TEST(FieldsTest, InfinityCannotBeWritten) {
  Outer value;
  value.inner.rate = std::numeric_limits<double>::infinity();
  EXPECT_THROW(to_json(value), Error);
}

TEST(NearestNameTest, ForgivesTyposAlone) {
  const std::vector<std::string> names = {"peak_lr", "warmup_steps", "batch_size"};
  EXPECT_EQ(nearest_name("peek_lr", names), "peak_lr");
  EXPECT_EQ(nearest_name("warmup_setps", names), "warmup_steps");
  EXPECT_EQ(nearest_name("batchsize", names), "batch_size");
  EXPECT_EQ(nearest_name("temperature", names), std::nullopt);
  EXPECT_EQ(nearest_name("", names), std::nullopt);
  EXPECT_EQ(nearest_name(std::string(1'000'000, 'x'), names), std::nullopt);
  EXPECT_EQ(nearest_name("x", {}), std::nullopt);
}

}  // namespace
}  // namespace needle
