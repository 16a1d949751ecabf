#include "needle/synth/values.h"

#include <set>
#include <string>

#include <gtest/gtest.h>

namespace needle {
namespace {

ToolParameter parameter(std::string name, std::string type,
                        JsonValue schema = JsonValue::object()) {
  return {.name = std::move(name), .type = std::move(type), .schema = std::move(schema)};
}

TEST(ValuesTest, GuessesTheKindFromNameTypeAndEnum) {
  EXPECT_EQ(guess_kind(parameter("song_name", "string")), ValueKind::kSong);
  EXPECT_EQ(guess_kind(parameter("destination", "string")), ValueKind::kCity);
  EXPECT_EQ(guess_kind(parameter("brightness", "integer")), ValueKind::kInteger);
  EXPECT_EQ(guess_kind(parameter("xyzzy", "string")), ValueKind::kPhrase);
  const JsonValue choices = JsonValue::object(
      {{"enum", JsonValue::array({JsonValue::string("on"), JsonValue::string("off")})}});
  EXPECT_EQ(guess_kind(parameter("state", "string", choices)), ValueKind::kEnum);
}

TEST(ValuesTest, TrainAndTestPoolsShareNoValue) {
  for (const char* name : {"city", "song", "person", "room", "item"}) {
    const ToolParameter one = parameter(name, "string");
    std::set<std::string> train;
    Random random(3);
    for (int i = 0; i < 500; ++i) {
      train.insert(draw_value(one, ValuePool::kTrain, random).spoken);
    }
    ASSERT_GT(train.size(), 10u) << name;
    for (int i = 0; i < 500; ++i) {
      const std::string spoken = draw_value(one, ValuePool::kTest, random).spoken;
      EXPECT_FALSE(train.contains(spoken)) << name << ": " << spoken;
    }
  }
}

TEST(ValuesTest, NumbersStayInTheirDeclaredRange) {
  const ToolParameter degrees = parameter("degrees", "integer",
                                          JsonValue::object({{"minimum", JsonValue::integer(15)},
                                                             {"maximum", JsonValue::integer(18)}}));
  Random random(1);
  std::set<std::int64_t> seen;
  for (int i = 0; i < 200; ++i) {
    const SpokenValue value = draw_value(degrees, ValuePool::kAll, random);
    ASSERT_TRUE(value.value.is_integer());
    seen.insert(*value.value.as_int64());
    EXPECT_EQ(value.spoken, value.value.number_text());
  }
  EXPECT_EQ(seen, (std::set<std::int64_t>{15, 16, 17, 18}));
}

}  // namespace
}  // namespace needle
