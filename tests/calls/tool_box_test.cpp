#include "needle/calls/tool_box.h"

#include <cstdint>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {

enum class Unit { kCelsius, kFahrenheit };
inline constexpr EnumNames<Unit, 2> kUnitNames{
    {{{Unit::kCelsius, "celsius"}, {Unit::kFahrenheit, "fahrenheit"}}}};
template <>
struct EnumTable<Unit> {
  static constexpr const auto& value = kUnitNames;
};

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Place {
  std::string city;
  std::optional<double> latitude;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("city", self.city, "Name", FieldLimits{.min_length = 1});
    visit("latitude", self.latitude, "Degrees", FieldLimits{.minimum = -90, .maximum = 90});
  }
};

struct Forecast {
  std::vector<Place> places;
  std::int8_t days = 0;
  Unit unit = Unit::kFahrenheit;
  std::optional<bool> detailed;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("places", self.places, "Where", FieldLimits{.min_items = 1, .max_items = 2});
    visit("days", self.days, "How many");
    visit("unit", self.unit, "");
    visit("detailed", self.detailed, "More");
  }
};

struct Alarm {
  std::int32_t hour = 0;
  std::string label = "none";

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("hour", self.hour, "Hour of the day", FieldLimits{.minimum = 0, .maximum = 23});
    visit("label", self.label, "What for", FieldLimits{.max_length = 5, .pattern = "[a-z]+"});
  }
};

TEST(ToolBoxTest, StructsDescribeFlatTools) {
  ToolBox tools;
  tools.add("set_alarm", "Wake the user", [](const Alarm&) {});
  EXPECT_EQ(
      tools.json(),
      R"([{"name":"set_alarm","description":"Wake the user","parameters":{"hour":{"type":)"
      R"("integer","minimum":0,"maximum":23,"description":"Hour of the day","required":true},)"
      R"("label":{"type":"string","maxLength":5,"pattern":"[a-z]+","description":"What for",)"
      R"("required":true}}}])");
}

TEST(ToolBoxTest, NestedStructsDescribeSchemas) {
  ToolBox tools;
  tools.add("forecast", "", [](Forecast) {});
  const JsonValue parsed = *parse_json_value(tools.json()).value;
  const std::string parameters = write_compact(*parsed.items()[0].find("parameters"));
  EXPECT_EQ(parameters,
            R"({"type":"object","properties":{"places":{"type":"array","items":{"type":"object",)"
            R"("properties":{"city":{"type":"string","minLength":1,"description":"Name"},)"
            R"("latitude":{"type":"number","minimum":-90,"maximum":90,"description":"Degrees"}},)"
            R"("required":["city"]},"minItems":1,"maxItems":2,"description":"Where"},)"
            R"("days":{"type":"integer","description":"How many"},)"
            R"("unit":{"type":"string","enum":["celsius","fahrenheit"]},)"
            R"("detailed":{"type":"boolean","description":"More"}},)"
            R"("required":["places","days","unit"]})");
}

TEST(ToolBoxTest, CallsReachTheFunctionsTyped) {
  ToolBox tools;
  std::vector<Forecast> got;
  tools.add("forecast", "", [&got](const Forecast& forecast) {
    got.push_back(forecast);
    return forecast.places;
  });
  tools.add("stop", "Stop it", [] { return true; });
  tools.add(
      "roll", "Roll dice", {{"count", "How many", {.minimum = 1}}, {"sides", ""}},
      [](int count, std::optional<unsigned> sides) { return count * int(sides.value_or(6)); });
  const auto outcomes = tools.dispatch(
      R"([{"name":"forecast","arguments":{"places":[{"city":"Wien"},{"city":"Rom","latitude":41.9}],)"
      R"("days":3.0,"unit":"celsius"}},{"name":"stop","arguments":{}},)"
      R"({"name":"roll","arguments":{"count":2}},{"name":"roll","arguments":{"count":2,"sides":4}}])");
  ASSERT_EQ(outcomes.size(), 4u);
  for (const ToolOutcome& outcome : outcomes) {
    EXPECT_TRUE(outcome.ok()) << outcome.call.name << outcome.error;
  }
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].places[0].city, "Wien");
  EXPECT_FALSE(got[0].places[0].latitude);
  EXPECT_EQ(got[0].places[1].latitude, 41.9);
  EXPECT_EQ(got[0].days, 3);
  EXPECT_EQ(got[0].unit, Unit::kCelsius);
  EXPECT_FALSE(got[0].detailed);
  EXPECT_EQ(write_compact(outcomes[0].result),
            R"([{"city":"Wien","latitude":null},{"city":"Rom","latitude":41.9}])");
  EXPECT_EQ(write_compact(outcomes[1].result), "true");
  EXPECT_EQ(write_compact(outcomes[2].result), "12");
  EXPECT_EQ(write_compact(outcomes[3].result), "8");
}

int twice(int x) { return 2 * x; }

TEST(ToolBoxTest, TakesPlainFunctionsAndGivesTextBack) {
  ToolBox tools;
  tools.add("twice", "", {{"x", ""}}, &twice).add("hello", "", [] { return "hi"; });
  const auto outcomes =
      tools.dispatch(R"([{"name":"twice","arguments":{"x":-4}},{"name":"hello","arguments":{}}])");
  EXPECT_EQ(write_compact(outcomes.at(0).result), "-8");
  EXPECT_EQ(write_compact(outcomes.at(1).result), R"("hi")");
}

TEST(ToolBoxTest, ProblemsHavePathsAndStopEverything) {
  ToolBox tools;
  int ran = 0;
  tools.add("set_alarm", "", [&ran](const Alarm&) { ++ran; });
  tools.add("forecast", "", [&ran](const Forecast&) { ++ran; });
  const std::string answer =
      R"([{"name":"set_alarm","arguments":{"hour":7,"label":"tea"}},)"
      R"({"name":"set_alarm","arguments":{"hour":24}},)"
      R"({"name":"forecast","arguments":{"places":[{"town":"Rom"}],"days":1,"unit":"kelvin"}},)"
      R"({"name":"set_alarms","arguments":{}},)"
      R"({"name":"forecast","arguments":{"places":[{"city":"x"}],"days":300,"unit":"celsius"}}])";
  const auto outcomes = tools.dispatch(answer);
  ASSERT_EQ(outcomes.size(), 5u);
  EXPECT_EQ(ran, 0);
  const auto paths = [&](std::size_t i) {
    std::vector<std::string> found;
    for (const CallProblem& problem : outcomes[i].problems) {
      found.push_back(problem.path);
    }
    return found;
  };
  EXPECT_THAT(paths(0), IsEmpty());
  EXPECT_FALSE(outcomes[0].ran);
  EXPECT_THAT(paths(1), ElementsAre("[1].arguments.hour", "[1].arguments.label"));
  EXPECT_THAT(paths(2), ElementsAre("[2].arguments.places[0].town", "[2].arguments.places[0].city",
                                    "[2].arguments.unit"));
  EXPECT_THAT(paths(3), ElementsAre("[3].name"));
  ASSERT_EQ(outcomes[4].problems.size(), 1u);  // what a schema does not say: an int8
  EXPECT_THAT(outcomes[4].problems[0].message,
              HasSubstr("[4].arguments.days: expected an integer from -128 to 127, got 300"));
  const auto some = tools.dispatch(answer, {.all_or_none = false});
  EXPECT_EQ(ran, 1);
  EXPECT_TRUE(some[0].ok());
  EXPECT_FALSE(some[1].ran);
  EXPECT_THROW(tools.dispatch("no calls"), DataError);
  EXPECT_THAT(tools.dispatch("[]"), IsEmpty());
}

TEST(ToolBoxTest, WhatAFunctionThrowsIsItsOwnError) {
  ToolBox tools;
  tools.add("bad", "", []() -> int { throw std::runtime_error("no battery"); });
  tools.add("worse", "", [] { throw 5; });
  tools.add("good", "", [] {});
  const auto outcomes =
      tools.dispatch(R"([{"name":"bad","arguments":{}},{"name":"worse","arguments":{}},)"
                     R"({"name":"good","arguments":{}}])");
  EXPECT_EQ(outcomes.at(0).error, "no battery");
  EXPECT_TRUE(outcomes[0].ran);
  EXPECT_FALSE(outcomes[0].ok());
  EXPECT_FALSE(outcomes.at(1).ok());
  EXPECT_TRUE(outcomes.at(2).ok());
  EXPECT_TRUE(outcomes[2].result.is_null());
}

TEST(ToolBoxTest, NamesAreThereOnce) {
  ToolBox tools;
  tools.add("stop", "", [] {});
  EXPECT_THROW(tools.add("stop", "", [] {}), ConfigError);
  EXPECT_THROW(tools.add("", "", [] {}), ConfigError);
  EXPECT_THROW(tools.add("two", "", {{"x", ""}}, [](int, int) {}), Error);
  EXPECT_EQ(tools.tools().size(), 1u);
  EXPECT_EQ(tools.json(), R"([{"name":"stop","description":"","parameters":{}}])");
}

}  // namespace
}  // namespace needle
