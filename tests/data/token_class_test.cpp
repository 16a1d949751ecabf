#include "needle/data/token_class.h"

#include <string>

#include <gtest/gtest.h>

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

// The marked stretches with their classes: "1:f 3:city 2:Rome".
std::string stretches(std::string_view text, const std::vector<TokenClass>& marks) {
  std::string list;
  for (std::size_t at = 0; at < marks.size();) {
    std::size_t end = at + 1;
    while (end < marks.size() && marks[end] == marks[at]) {
      ++end;
    }
    if (marks[at] != TokenClass::kStructure) {
      list += format("{}{}:{}", list.empty() ? "" : " ", static_cast<int>(marks[at]),
                     text.substr(at, end - at));
    }
    at = end;
  }
  return list;
}

std::string digits(const std::vector<TokenClass>& classes) {
  std::string text;
  for (const TokenClass token_class : classes) {
    text += static_cast<char>('0' + static_cast<int>(token_class));
  }
  return text;
}

MarkedText marked(std::string_view json, JsonEscapes escapes = JsonEscapes::kAscii) {
  return mark_answer(parse_json_value(json).value.value(), escapes);
}

TEST(MarkAnswerTest, MarksNamesKeysAndValuesOfEveryCall) {
  const MarkedText answer = marked(
      R"([{"name":"f","arguments":{"a":"x","b":55}},{"name":"f","arguments":{"a":"x","b":5}}])");
  EXPECT_EQ(stretches(answer.text, answer.marks), "1:f 3:a 2:x 3:b 2:55 1:f 3:a 2:x 3:b 2:5");
}

TEST(MarkAnswerTest, ValuesWithEscapesAndNestedValuesAreMarkedWhole) {
  const MarkedText answer = marked(R"([{"arguments":{"t":"a\"é","o":{"t":[1, 2]}},"name":"g"}])");
  EXPECT_EQ(answer.text, R"([{"arguments":{"t":"a\"\u00e9","o":{"t":[1,2]}},"name":"g"}])");
  EXPECT_EQ(stretches(answer.text, answer.marks), R"(3:t 2:a\"\u00e9 3:o 2:{"t":[1,2]} 1:g)");
}

TEST(MarkAnswerTest, TextIsWhatTheCompactWriterWrites) {
  for (const std::string_view json :
       {R"([])", R"([1,"x",null,{}])", R"({"name":"f","arguments":{"a":1}})", R"("text")",
        R"([{"name":5,"arguments":[{"a":1}],"id":{"name":"n"}}])", R"([{"arguments":{}}])",
        R"([{"name":"né","arguments":{"é":"\u0000🎉","k":[1e5,-0.0,NaN]}}])"}) {
    for (const JsonEscapes escapes : {JsonEscapes::kAscii, JsonEscapes::kUtf8}) {
      const MarkedText answer = marked(json, escapes);
      EXPECT_EQ(answer.text, write_compact(*parse_json_value(json).value, escapes));
      EXPECT_EQ(answer.marks.size(), answer.text.size());
    }
  }
}

TEST(MarkAnswerTest, AnswersThatAreNoListOfCallsHaveNoMarks) {
  for (const std::string_view json : {R"({"name":"f","arguments":{"a":1}})", R"("name")", "[1]"}) {
    const MarkedText answer = marked(json);
    EXPECT_EQ(stretches(answer.text, answer.marks), "");
  }
}

TEST(ReferenceMarksTest, OnlyTheFirstPlaceIsMarkedAndKeysEverywhere) {
  const std::string twice =
      R"([{"name":"f","arguments":{"a":55}},{"name":"f","arguments":{"a":5,"b":[1,2]}}])";
  EXPECT_EQ(stretches(twice, reference_marks(twice)), "1:f 3:a 2:55 3:a 3:b");
  // An argument called "name" makes every "name" a key, and its value is found in the call's name.
  const std::string name = R"([{"name":"f","arguments":{"name":"f"}}])";
  EXPECT_EQ(stretches(name, reference_marks(name)), "3:name 2:f 3:name");
  EXPECT_EQ(stretches("no json", reference_marks("no json")), "");
}

TEST(ClassifyTokensTest, ATokenTakesTheHighestClassOfItsBytes) {
  const std::vector<TokenClass> marks{TokenClass::kStructure, TokenClass::kName, TokenClass::kValue,
                                      TokenClass::kKey, TokenClass::kStructure};
  const std::vector<TokenSpan> tokens{{7, 0, 0}, {8, 0, 1}, {9, 0, 3}, {9, 2, 5}, {9, 4, 9}};
  EXPECT_EQ(digits(classify_tokens(tokens, marks)), "00230");
}

TEST(ReferenceClassesTest, EveryTokenLooksOneCharacterTooFarRight) {
  const Tokenizer tokenizer = golden_tokenizer();
  const std::string text = R"([{"name":"set","arguments":{"k":"v"}}])";
  const std::vector<TokenSpan> tokens = tokenizer.encode_spans(text);
  std::vector<TokenClass> shifted = reference_marks(text);
  const auto exact = classify_tokens(tokens, shifted);
  shifted.erase(shifted.begin());  // mark i + 1 at character i
  shifted.push_back(TokenClass::kStructure);
  EXPECT_EQ(digits(reference_classes(tokenizer, tokens, reference_marks(text))).substr(1),
            digits(classify_tokens(tokens, shifted)).substr(1));
  EXPECT_NE(digits(exact), digits(reference_classes(tokenizer, tokens, reference_marks(text))));
}

}  // namespace
}  // namespace needle::test
