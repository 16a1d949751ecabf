#include "needle/decode/grammar_constraint.h"

#include <limits>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/calls/call.h"
#include "needle/calls/utf8.h"
#include "needle/core/file.h"
#include "needle/core/random.h"
#include "needle/decode/token_loop.h"

#include "tests/decode/grammar_support.h"
#include "tests/decode/random_schema.h"

namespace needle {
namespace {

using test::parsed;
using test::RandomSession;
using test::tiny_tokenizer;
using test::tiny_trie;

struct Answer {
  std::string text;
  GeneratedTokens tokens;
};

Answer answer_of(GrammarConstraint& constraint, EngineSession& session, std::int64_t budget) {
  GenerateOptions options;
  options.max_gen_len = budget + 1;
  options.constraint = &constraint;
  Answer answer{.tokens = generate_tokens(session, options)};
  EXPECT_EQ(answer.tokens.ids.empty() ? -1 : answer.tokens.ids[0], kToolCallId);
  answer.text = tiny_tokenizer().decode(std::span(answer.tokens.ids).subspan(1));
  return answer;
}

std::shared_ptr<const Grammar> schema_grammar(const JsonValue& schema) {
  return Grammar::of_schema(schema, tiny_trie(), {.escapes = JsonEscapes::kUtf8});
}

constexpr const char* kTools = R"([
  {"name":"get_weather","parameters":{"location":{"type":"string","required":true},"days":{"type":"integer","minimum":1,"maximum":14}}},
  {"name":"set_light","parameters":{"room":{"type":"string","enum":["kitchen","bedroom"],"required":true},"on":{"type":"boolean","required":true}}}])";

TEST(GrammarConstraintTest, AnyWeightsGiveValidCallsAtAnyBudgetFromTheMinimumOn) {
  const auto grammar = Grammar::of_tools(kTools, tiny_trie());
  const std::vector<Tool> tools = parse_tools_text(kTools);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const CallLimits limits{.min_calls = static_cast<std::int64_t>(seed % 3)};
    GrammarConstraint constraint(grammar, tiny_tokenizer(), limits);
    const std::int64_t budget = constraint.min_tokens() + static_cast<std::int64_t>(seed % 40);
    RandomSession session(tiny_tokenizer().vocab_size(), seed);
    const Answer answer = answer_of(constraint, session, budget);
    ASSERT_TRUE(constraint.is_whole()) << answer.text;
    ASSERT_TRUE(is_valid_utf8(answer.text)) << answer.text;
    const std::vector<Call> calls = parse_calls_text(answer.text);
    EXPECT_GE(std::ssize(calls), limits.min_calls);
    EXPECT_TRUE(validate_calls(calls, tools).empty()) << answer.text;
  }
}

TEST(GrammarConstraintTest, ValuesOfRandomSchemasFitAtEveryBudget) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    Random rng(seed);
    const JsonValue schema = test::random_schema(rng, 3);
    const auto grammar = schema_grammar(schema);
    GrammarConstraint constraint(grammar, tiny_tokenizer());
    const std::int64_t budget = constraint.min_tokens() + static_cast<std::int64_t>(seed % 50);
    RandomSession session(tiny_tokenizer().vocab_size(), seed);
    const Answer answer = answer_of(constraint, session, budget);
    ASSERT_TRUE(constraint.is_whole()) << write_compact(schema) << "\n" << answer.text;
    ASSERT_TRUE(is_valid_utf8(answer.text));
    EXPECT_TRUE(parse_json_value(answer.text).value.has_value()) << answer.text;
    EXPECT_TRUE(test::accepts(grammar, answer.text)) << answer.text;
  }
}

TEST(GrammarConstraintTest, AllowsExactlyTheTokensThatGoOnValidly) {
  // Against the obvious way: each token's bytes through the machine.
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    Random rng(seed);
    const JsonValue schema = test::random_schema(rng, 3);
    const auto grammar = schema_grammar(schema);
    GrammarConstraint constraint(grammar, tiny_tokenizer());
    constraint.accept(kToolCallId);
    std::vector<TokenId> ids;
    for (int step = 0; step < 30 && !constraint.is_whole(); ++step) {
      const TokenSet* const allowed = constraint.allowed(1000);
      std::vector<TokenId> members;
      for (TokenId id = 0; id < tiny_trie()->vocab_size(); ++id) {
        GrammarMachine machine(grammar, {}, nullptr);
        GrammarMachine::Threads threads = machine.start(), next;
        std::string text;
        for (const TokenId before : ids) {
          text += tiny_trie()->text(before);
        }
        const std::string_view own = tiny_trie()->text(id);
        for (const char byte : text + std::string(own)) {
          machine.step(threads, static_cast<std::uint8_t>(byte), next);
          threads.swap(next);
        }
        // Of two tokens with the same bytes only one is offered.
        const TokenTrie::Node* node = &tiny_trie()->node(TokenTrie::kRoot);
        for (std::size_t i = 0; i < own.size(); ++i) {
          node = tiny_trie()->child(*node, static_cast<std::uint8_t>(own[i]));
        }
        const bool offered = !own.empty() && node->token == id && !threads.empty();
        ASSERT_EQ(allowed->contains(id), offered)
            << write_compact(schema) << " " << text << " + " << own;
        if (offered) {
          members.push_back(id);
        }
      }
      ASSERT_FALSE(members.empty());
      ids.push_back(members[rng.below(static_cast<std::uint32_t>(members.size()))]);
      constraint.accept(ids.back());
    }
  }
}

TEST(GrammarConstraintTest, ForcedTokensAreTheSpellingOfTraining) {
  const char* tools =
      R"([{"name":"get_weather","parameters":{"location":{"type":"string","required":true}}}])";
  const auto grammar = Grammar::of_tools(tools, tiny_trie());
  const std::string answer = R"([{"name":"get_weather","arguments":{"location":"Rome"}}])";
  std::vector<TokenId> ids{kToolCallId};
  for (const TokenId id : tiny_tokenizer().encode(answer)) {
    ids.push_back(id);
  }
  ids.push_back(kEosId);
  GrammarConstraint constraint(grammar, tiny_tokenizer(), {.min_calls = 1, .max_calls = 1});
  std::size_t forced = 0;
  for (std::size_t at = 0; at < ids.size();) {
    const std::span<const TokenId> run = constraint.forced(500);
    const std::vector<TokenId> copy(run.begin(), run.end());
    for (const TokenId id : copy) {
      ASSERT_EQ(id, ids[at]) << "token " << at;
      ++at;
      ++forced;
      if (id != kEosId) {
        constraint.accept(id);
      }
    }
    if (copy.empty()) {
      ASSERT_TRUE(constraint.allowed(500)->contains(ids[at])) << "token " << at;
      constraint.accept(ids[at]);
      ++at;
    }
  }
  EXPECT_GT(forced, ids.size() / 2);
}

TEST(GrammarConstraintTest, GroundedStringsAreSpansOfTheQuery) {
  const char* tools =
      R"([{"name":"f","parameters":{"where":{"type":"string","required":true,"x-grounded":true},
                          "count":{"type":"integer","required":true,"x-grounded":true}}}])";
  const auto grammar = Grammar::of_tools(tools, tiny_trie(), {.escapes = JsonEscapes::kUtf8});
  const std::string query = "Book \"The Grand Café\" in São Paulo for twenty five people";
  const QuerySpans spans(query);
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    GrammarConstraint constraint(grammar, tiny_tokenizer(), {.min_calls = 1, .max_calls = 1},
                                 query);
    RandomSession session(tiny_tokenizer().vocab_size(), seed);
    const std::int64_t budget = constraint.min_tokens() + static_cast<std::int64_t>(seed % 60);
    const Answer answer = answer_of(constraint, session, budget);
    ASSERT_TRUE(constraint.is_whole()) << answer.text;
    const std::vector<Call> calls = parse_calls_text(answer.text);
    const std::string where = calls.at(0).arguments.find("where")->as_string();
    EXPECT_TRUE(spans.find(where).has_value()) << where;
    EXPECT_EQ(calls[0].arguments.find("count")->as_int64(), 25);
  }
}

// The shortest span is longer than the shortest string that the schema alone asks for.
TEST(GrammarConstraintTest, LongWordsAndNumbersOfTheQueryAreCountedIntoTheBudget) {
  const char* tools =
      R"([{"name":"f","parameters":{"a":{"type":"string","required":true},
                                    "b":{"type":"string"},
                                    "n":{"type":"integer"}}},
          {"name":"g","parameters":{"list":{"type":"array","required":true,"minItems":2,
                                            "items":{"type":"string"}}}}])";
  const auto grammar = Grammar::of_tools(tools, tiny_trie(), {.grounded = {"f", "g"}});
  const std::string query = "extraordinarily incomprehensible 987654321987";
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    GrammarConstraint constraint(grammar, tiny_tokenizer(),
                                 {.min_calls = static_cast<std::int64_t>(seed % 3)}, query);
    RandomSession session(tiny_tokenizer().vocab_size(), seed);
    const std::int64_t budget = constraint.min_tokens() + static_cast<std::int64_t>(seed % 90);
    const Answer answer = answer_of(constraint, session, budget);
    ASSERT_TRUE(constraint.is_whole()) << "budget " << budget << ": " << answer.text;
  }
}

TEST(GrammarConstraintTest, WithoutWordsOrNumbersInTheQueryNothingIsGrounded) {
  const char* tools =
      R"([{"name":"f","parameters":{"a":{"type":"string","required":true},"n":{"type":"integer","required":true}}}])";
  const auto grammar = Grammar::of_tools(tools, tiny_trie(), {.grounded = {"f"}});
  GrammarConstraint constraint(grammar, tiny_tokenizer(), {.min_calls = 1, .max_calls = 1}, "?!");
  RandomSession session(tiny_tokenizer().vocab_size(), 1);
  answer_of(constraint, session, 80);
  EXPECT_TRUE(constraint.is_whole());
}

TEST(GrammarConstraintTest, ACopyGoesItsOwnWay) {
  const auto grammar = Grammar::of_tools(kTools, tiny_trie());
  GrammarConstraint constraint(grammar, tiny_tokenizer());
  constraint.accept(kToolCallId);
  const auto copy = constraint.clone();
  for (const TokenId id : tiny_tokenizer().encode("[]")) {
    copy->accept(id);
  }
  EXPECT_EQ(copy->forced(10).front(), kEosId);
  EXPECT_FALSE(constraint.is_whole());
  EXPECT_THROW(copy->accept(tiny_tokenizer().encode("[]").front()), Error);
}

}  // namespace
}  // namespace needle
