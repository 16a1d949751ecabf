#include "needle/decode/grounding.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/random.h"

namespace needle {
namespace {

std::string found(std::string_view query, std::string_view text) {
  const auto range = QuerySpans(query).find(text);
  return range ? std::string(query.substr(range->begin, range->end - range->begin)) : "-";
}

TEST(QuerySpansTest, FindsWholeWordsInAnyCase) {
  EXPECT_EQ(found("Weather in New  York, please", "new york"), "New  York");
  EXPECT_EQ(found("play \"Hey Jude\" now", "Hey Jude"), "Hey Jude");
  EXPECT_EQ(found("turn on the lights", "light"), "-") << "half a word";
  EXPECT_EQ(found("the kitchen's lamp", "kitchen"), "kitchen");
  EXPECT_EQ(found("caf\u00c9 \u041c\u041e\u0421\u041a\u0412\u0410", "caf\u00e9"), "caf\u00c9");
  EXPECT_EQ(found("caf\u00c9 \u041c\u041e\u0421\u041a\u0412\u0410",
                  "\u043c\u043e\u0441\u043a\u0432\u0430"),
            "\u041c\u041e\u0421\u041a\u0412\u0410");
  EXPECT_EQ(found("\u5317\u4eac\u5929\u6c14", "\u5317\u4eac"), "\u5317\u4eac")
      << "no spaces between words";
  EXPECT_EQ(found("a b", "a c"), "-");
  EXPECT_EQ(found("a b", ""), "-");
  EXPECT_EQ(found("", "a"), "-");
  EXPECT_TRUE(QuerySpans(" ?! ").empty());
}

TEST(QuerySpansTest, EveryWalkEndsInAShortWay) {
  Random random(11);
  for (const std::string_view query :
       {"set an alarm for 7, \"now\"?!", "\u5317\u4eac abc", "x", "one two  three..."}) {
    const QuerySpans spans(query);
    for (int walk = 0; walk < 50; ++walk) {
      QuerySpans::State state = spans.start();
      std::size_t left = spans.shortest_end(state);
      ASSERT_GT(left, 0U);
      EXPECT_FALSE(spans.may_end(state)) << "an empty string is no span";
      for (int step = 0; step < 6; ++step) {
        std::vector<std::uint32_t> next;
        for (std::uint32_t c = 1; c < 0x10000; c = c == 0x7F ? 0x4E00 : c + 1) {
          if (!spans.advance(state, c).empty()) {
            next.push_back(c);
          }
        }
        if (next.empty()) {
          EXPECT_TRUE(spans.may_end(state));
          break;
        }
        state = spans.advance(state, next[random.below(static_cast<std::uint32_t>(next.size()))]);
        EXPECT_EQ(spans.may_end(state), spans.shortest_end(state) == 0);
        EXPECT_LE(spans.shortest_end(state), query.size());
      }
    }
  }
}

TEST(QuerySpansTest, ASpanKeepsOneLetterCase) {
  const QuerySpans spans("play the iPhone song at lax by Strange Gods");
  const auto spells = [&spans](std::string_view text) {
    QuerySpans::State state = spans.start();
    for (const char c : text) {
      state = spans.advance(state, static_cast<std::uint32_t>(c));
    }
    return spans.may_end(state);
  };
  for (const char* text : {"Strange Gods", "strange gods", "Strange gods", "iPhone song",
                           "Iphone Song", "iphone song", "LAX", "lax", "Lax", "by Strange Gods"}) {
    EXPECT_TRUE(spells(text)) << text;
  }
  for (const char* text :
       {"strange Gods", "StRange", "STRANGE", "LaX", "lAX", "iphone Song", "Strange God"}) {
    EXPECT_FALSE(spells(text)) << text;
  }
  // The rest of a word follows from its beginning.
  QuerySpans::State state = spans.start();
  for (const char c : std::string_view("Str")) {
    state = spans.advance(state, static_cast<std::uint32_t>(c));
  }
  std::vector<std::uint32_t> next;
  spans.next_characters(state, next);
  EXPECT_THAT(next, ::testing::Each('a'));
  EXPECT_FALSE(next.empty());
}

TEST(NumbersOfTest, ReadsDigitsAndWords) {
  const auto values = [](std::string_view query) {
    std::vector<double> all;
    for (const QueryNumber& number : numbers_of(query)) {
      all.push_back(number.value);
    }
    return all;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(values("5 lamps at 2.5, -3 outside"), ElementsAre(5, 2.5, -3));
  EXPECT_THAT(values("Twenty-five minutes"), ElementsAre(25));
  EXPECT_THAT(values("two hundred and six thousand four"), ElementsAre(206004));
  EXPECT_THAT(values("five six"), ElementsAre(5, 6));
  EXPECT_THAT(values("ten and five"), ElementsAre(10, 5));
  EXPECT_THAT(values("someone and nobody"), ElementsAre());
}

TEST(FindInQueryTest, SaysWhereAValueComesFrom) {
  const std::string query = "dim the Hall lamp to twenty percent";
  const auto text = [&](const JsonValue& value) {
    const auto range = find_in_query(query, value);
    return range ? query.substr(range->begin, range->end - range->begin) : "-";
  };
  EXPECT_EQ(text(JsonValue::string("hall lamp")), "Hall lamp");
  EXPECT_EQ(text(JsonValue::integer(20)), "twenty");
  EXPECT_EQ(text(JsonValue::integer(21)), "-");
  EXPECT_EQ(text(JsonValue::boolean(true)), "-");
}

TEST(IsGroundableTest, OnlyStringsWithoutAFormOfTheirOwn) {
  const auto groundable = [](std::string_view schema) {
    return is_groundable(*parse_json_value(schema).value);
  };
  EXPECT_TRUE(groundable(R"({"type":"string","description":"a city"})"));
  EXPECT_FALSE(groundable(R"({"type":"string","enum":["a"]})"));
  EXPECT_FALSE(groundable(R"({"type":"string","format":"date"})"));
  EXPECT_FALSE(groundable(R"({"type":"integer"})"));
  EXPECT_FALSE(groundable("5"));
}

}  // namespace
}  // namespace needle
