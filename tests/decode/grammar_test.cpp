#include "needle/decode/grammar.h"

#include <chrono>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/decode/grammar_machine.h"

#include "tests/decode/grammar_support.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

using test::parsed;
using test::tiny_trie;
using ::testing::HasSubstr;

std::shared_ptr<const Grammar> grammar_of(const std::string& schema,
                                          JsonEscapes escapes = JsonEscapes::kUtf8) {
  return Grammar::of_schema(parsed(schema), tiny_trie(), {.escapes = escapes});
}

bool accepts(const std::shared_ptr<const Grammar>& grammar, std::string_view text,
             const CallLimits& limits = {}) {
  return test::accepts(grammar, text, limits);
}

std::string error_of(const std::string& schema) {
  try {
    grammar_of(schema);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// --- The table ---

TEST(GrammarConformanceTest, AcceptsTheValidValuesOfTheTableAndRefusesTheInvalidOnes) {
  std::int64_t pairs = 0;
  for (const char* file : {"scalars.json", "strings.json", "structures.json"}) {
    const auto path = test::golden("").parent_path().parent_path() / "decode/conformance" / file;
    const JsonValue table = parsed(read_file(path));
    for (const JsonValue& row : table.items()) {
      const JsonValue& schema = *row.find("schema");
      const auto grammar = Grammar::of_schema(schema, tiny_trie(), {.escapes = JsonEscapes::kUtf8});
      EXPECT_TRUE(grammar->unenforced().empty()) << write_compact(schema);
      for (const auto& [verdict, wanted] : {std::pair("valid", true), {"invalid", false}}) {
        const JsonValue* values = row.find(verdict);
        const JsonValue::Array none;
        for (const JsonValue& value : values != nullptr ? values->items() : none) {
          const std::string text = write_compact(value, JsonEscapes::kUtf8);
          EXPECT_EQ(accepts(grammar, text), wanted) << text << " for " << write_compact(schema);
          ++pairs;
        }
      }
    }
  }
  EXPECT_GE(pairs, 400);
}

TEST(GrammarConformanceTest, RefusesEveryBeginningOfAValueAsAWhole) {
  const auto grammar =
      grammar_of(R"({"type":"object","properties":{"a":{"type":"string"}},"required":["a"]})");
  const std::string text = R"({"a":"b\u00e9\n"})";
  ASSERT_TRUE(accepts(grammar, text));
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(accepts(grammar, std::string_view(text).substr(0, size))) << size;
  }
}

TEST(GrammarConformanceTest, StringsAreSpelledAsJsonWritersDo) {
  const auto grammar = grammar_of(R"({"type":"string"})");
  for (const char* text :
       {R"("é")", R"("\u00e9")", R"("\ud83d\ude00")", R"("\u0000\u001f")", R"("\"\\\n")"}) {
    EXPECT_TRUE(accepts(grammar, text)) << text;
  }
  for (const char* text :
       {R"("\ud83d")", R"("\ude00")", R"("\ud83dx")", R"("\u00E9")", R"("\x41")", "\"\n\"",
        "\"\xC3\"", "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\"", R"("a)"}) {
    EXPECT_FALSE(accepts(grammar, text)) << text;
  }
}

TEST(GrammarTest, KeysDoNotRepeat) {
  const auto closed =
      grammar_of(R"({"properties":{"a":{"type":"null"},"b":{"type":"null"}},"type":"object"})");
  EXPECT_TRUE(accepts(closed, R"({"b":null,"a":null})"));
  EXPECT_FALSE(accepts(closed, R"({"a":null,"a":null})"));
  const auto open = grammar_of(R"({"type":"object","additionalProperties":{"type":"null"},
                                   "properties":{"é":{"type":"integer"}}})");
  EXPECT_TRUE(accepts(open, R"({"x":null,"xx":null})"));
  EXPECT_FALSE(accepts(open, R"({"x":null,"x":null})"));
  EXPECT_FALSE(accepts(open, R"({"x":null,"\u0078":null})"));
  EXPECT_FALSE(accepts(open, R"({"\u00e9":null})"));  // declared with another type
  EXPECT_TRUE(accepts(open, R"({"é":1})"));
}

TEST(GrammarTest, ListedTextsAreSpelledWithTheEscapesOfTheModel) {
  const std::string schema = R"({"enum":["é"]})";
  EXPECT_TRUE(accepts(grammar_of(schema, JsonEscapes::kUtf8), "\"é\""));
  EXPECT_TRUE(accepts(grammar_of(schema, JsonEscapes::kAscii), R"("\u00e9")"));
}

TEST(GrammarTest, RecursionEndsAtADepth) {
  const std::string node =
      R"({"$defs":{"n":{"type":"object","properties":{"n":{"$ref":"#/$defs/n"}}}},"$ref":"#/$defs/n"})";
  const auto grammar = grammar_of(node);
  std::string text = "{}";
  int deepest = 0;
  for (int depth = 0; depth < 20; ++depth) {
    deepest = accepts(grammar, text) ? depth : deepest;
    text = "{\"n\":" + text + "}";
  }
  EXPECT_EQ(deepest, 5);
  EXPECT_THAT(error_of(R"({"type":"object","properties":{"n":{"$ref":"#"}},"required":["n"]})"),
              HasSubstr("holds itself without an end"));
  EXPECT_THAT(error_of(R"({"$ref":"#"})"), HasSubstr("refers to itself"));
}

// --- Calls ---

constexpr const char* kTools = R"([
  {"name":"get_weather","parameters":{"location":{"type":"string","required":true},"unit":{"type":"string","enum":["c","f"]}}},
  {"name":"stop","parameters":{}}])";

TEST(GrammarCallsTest, AcceptsListsOfCallsOfTheTools) {
  const auto grammar = Grammar::of_tools(kTools, tiny_trie());
  EXPECT_TRUE(accepts(grammar, "[]"));
  EXPECT_TRUE(accepts(grammar, R"([{"name":"stop","arguments":{}}])"));
  EXPECT_TRUE(accepts(
      grammar,
      R"([{"name":"get_weather","arguments":{"unit":"c","location":"Rome"}},{"name":"stop","arguments":{}}])"));
  for (const char* text :
       {R"([{"name":"stop","arguments":{"a":1}}])", R"([{"name":"sto","arguments":{}}])",
        R"([{"name":"get_weather","arguments":{}}])",
        R"([{"name":"get_weather","arguments":{"location":5}}])",
        R"([{"name":"get_weather","arguments":{"location":"x","unit":"k"}}])",
        R"([{"name":"stop"}])", "{}", "[[]]", R"([{"name":"stop","arguments":{}},])",
        R"([ {"name":"stop","arguments":{}}])"}) {
    EXPECT_FALSE(accepts(grammar, text)) << text;
  }
}

TEST(GrammarCallsTest, LimitsSayHowManyCallsAndOfWhichTool) {
  const auto grammar = Grammar::of_tools(kTools, tiny_trie());
  const std::string one = R"({"name":"stop","arguments":{}})";
  const CallLimits none{.max_calls = 0}, required{.min_calls = 1}, single{.max_calls = 1},
      named{.min_calls = 1, .max_calls = 1, .tool = "get_weather"};
  EXPECT_TRUE(accepts(grammar, "[]", none));
  EXPECT_FALSE(accepts(grammar, "[" + one + "]", none));
  EXPECT_FALSE(accepts(grammar, "[]", required));
  EXPECT_TRUE(accepts(grammar, "[" + one + "," + one + "]", required));
  EXPECT_TRUE(accepts(grammar, "[" + one + "]", single));
  EXPECT_FALSE(accepts(grammar, "[" + one + "," + one + "]", single));
  EXPECT_FALSE(accepts(grammar, "[" + one + "]", named));
  EXPECT_TRUE(accepts(grammar, R"([{"name":"get_weather","arguments":{"location":""}}])", named));
  EXPECT_THROW(accepts(grammar, "[]", {.tool = "absent"}), Error);
}

TEST(GrammarCallsTest, WithoutToolsTheAnswerIsAnEmptyList) {
  const auto grammar = Grammar::of_tools("[]", tiny_trie());
  EXPECT_TRUE(accepts(grammar, "[]"));
  EXPECT_FALSE(accepts(grammar, "[{"));
  EXPECT_THROW(accepts(grammar, "[]", {.min_calls = 1}), Error);
}

// --- What can't be enforced, and what makes no sense ---

TEST(GrammarReportTest, NamesEveryKeywordThatAnswersNeedNotObey) {
  const auto grammar = grammar_of(R"({"type":"object","minProperties":1,"properties":{
      "a":{"type":"string","pattern":"(?=x)y"}, "b":{"type":"string","format":"iri"},
      "c":{"not":{"type":"null"},"type":"integer"}, "d":{"type":"array","items":{"type":"string"},"uniqueItems":true},
      "e":{"oneOf":[{"type":"integer"},{"type":"number"}]}}})");
  std::vector<std::string> notes;
  for (const Unenforced& one : grammar->unenforced()) {
    notes.push_back(one.path + " " + one.keyword);
  }
  EXPECT_THAT(notes, ::testing::UnorderedElementsAre(
                         "schema minProperties", "schema.properties.a pattern",
                         "schema.properties.b format", "schema.properties.c not",
                         "schema.properties.d uniqueItems", "schema.properties.e oneOf"));
}

// What ECMA-262 refuses, too: a brace that counts is no character.
TEST(GrammarReportTest, QuantifiersOfNothingAreNotReadAsText) {
  for (const std::string pattern : {"a**", "a*{2}", "a{2}{3}", "a{2}?{3}", "a+?+", "{2}a",
                                    "(|{2,})", "^*a", "^{2}a", "a$+", "a|?"}) {
    const auto grammar = grammar_of(R"({"type":"string","pattern":")" + pattern + "\"}");
    ASSERT_EQ(grammar->unenforced().size(), 1u) << pattern;
    EXPECT_THAT(grammar->unenforced()[0].reason, HasSubstr("a quantifier")) << pattern;
  }
  for (const std::string pattern :
       {"a{,3}", "{a}", "a{", "a{2,1x}", "(^a)*", "a{2}?", "a{2}b{3}"}) {
    EXPECT_TRUE(
        grammar_of(R"({"type":"string","pattern":")" + pattern + "\"}")->unenforced().empty())
        << pattern;
  }
}

TEST(GrammarReportTest, ContradictionsAreErrorsThatNameThePlace) {
  EXPECT_THAT(
      error_of(
          R"({"type":"object","properties":{"a":{"type":"integer","minimum":5,"maximum":3}}})"),
      HasSubstr("schema.properties.a: no number fits"));
  EXPECT_THAT(
      error_of(
          R"({"type":"object","properties":{},"required":["b"],"additionalProperties":false})"),
      HasSubstr("schema.required: 'b' is required"));
  EXPECT_THAT(error_of(R"({"enum":[]})"), HasSubstr("schema.enum: an empty list"));
  EXPECT_THAT(error_of(R"({"type":"string","minLength":3,"maxLength":2})"),
              HasSubstr("minLength 3 is above maxLength 2"));
  EXPECT_THAT(
      error_of(R"({"type":"array","items":{"enum":[1,2]},"uniqueItems":true,"minItems":3})"),
      HasSubstr("minItems 3"));
  EXPECT_THAT(error_of(R"({"type":"string","pattern":"^a$","minLength":2})"),
              HasSubstr("no text has these lengths"));
  EXPECT_THAT(error_of(R"({"type":"integer","enum":["a"]})"), HasSubstr("no value fits"));
  EXPECT_THAT(error_of(R"({"anyOf":[]})"), HasSubstr("schema.anyOf: an empty list"));
  EXPECT_THAT(error_of(R"({"$ref":"#/$defs/absent"})"), HasSubstr("there is no '$defs'"));
  EXPECT_THAT(error_of(R"({"$ref":"http://x/y"})"), HasSubstr("same document"));
  EXPECT_THAT(error_of(R"({"type":"string","minLength":-1})"), HasSubstr("whole number"));
  EXPECT_THAT(error_of(R"({"type":"integer","multipleOf":0})"), HasSubstr("above 0"));
  EXPECT_THAT(error_of(R"({"properties":[]})"), HasSubstr("expected an object"));
  EXPECT_THAT(error_of("5"), HasSubstr("expected a schema"));
  EXPECT_EQ(error_of(R"({"anyOf":[{"type":"integer","minimum":2,"maximum":1},{"type":"null"}]})"),
            "no error");
}

TEST(GrammarReportTest, ToolsThatShareANameAreAnError) {
  try {
    Grammar::of_tools(R"([{"name":"a","parameters":{}},{"name":"a","parameters":{}}])",
                      tiny_trie());
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("tools[1].name: 'a' is the name of tools[0], too"));
  }
}

// --- Bounded time and memory ---

TEST(GrammarLimitsTest, HostileSchemasTakeLittleTime) {
  const auto start = std::chrono::steady_clock::now();
  grammar_of(R"({"type":"string","pattern":"^(a+)+$"})");
  grammar_of(R"({"type":"string","pattern":"(x{1000}){1000}"})");
  grammar_of(R"({"type":"string","pattern":"(a|b)*a(a|b){18}"})");
  grammar_of(
      R"({"type":"string","pattern":"((((((((((x?){9}){9}){9}){9}){9}){9}){9}){9}){9}){9}"})");
  grammar_of(R"({"type":"string","maxLength":1000000000000})");
  grammar_of(R"({"type":"array","maxItems":1000000000000})");
  error_of(R"({"type":"array","minItems":1000000000000})");
  error_of(R"({"type":"string","minLength":1000000000000})");
  error_of(R"({"type":"string","pattern":"a","minLength":1000000000000})");
  grammar_of(
      R"({"$defs":{"t":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/t"}},{"type":"object","additionalProperties":{"$ref":"#/$defs/t"}},{"type":"null"}]}},"$ref":"#/$defs/t"})");
  std::string many = R"({"anyOf":[)";
  for (int i = 0; i < 1000; ++i) {
    many += (i > 0 ? "," : "") + std::string(R"({"type":"string","minLength":)") +
            std::to_string(i) + "}";
  }
  EXPECT_THAT(error_of(many + "]}"), HasSubstr("more than 256 alternatives"));
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  EXPECT_LT(taken.count(), 10);  // seconds, under any sanitizer: nothing grows without bound
}

TEST(GrammarLimitsTest, TenThousandToolsAreFine) {
  std::string tools = "[";
  for (int i = 0; i < 10000; ++i) {
    tools += (i > 0 ? "," : "") + std::string(R"({"name":"tool_)") + std::to_string(i) +
             R"(","parameters":{"value":{"type":"string","required":true}}})";
  }
  const auto grammar = Grammar::of_tools(tools + "]", tiny_trie());
  EXPECT_TRUE(accepts(grammar, R"([{"name":"tool_9999","arguments":{"value":"x"}}])"));
  EXPECT_FALSE(accepts(grammar, R"([{"name":"tool_10000","arguments":{"value":"x"}}])"));
}

}  // namespace
}  // namespace needle
