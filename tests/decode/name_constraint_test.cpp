#include "needle/decode/name_constraint.h"

#include <algorithm>
#include <optional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::ElementsAre;

const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

std::shared_ptr<const TokenTexts> tiny_texts() {
  static const auto texts = std::make_shared<const TokenTexts>(tiny_tokenizer());
  return texts;
}

// In ascending order; nothing: no restriction.
std::optional<std::vector<TokenId>> allowed_ids(NameConstraint& constraint) {
  const TokenSet* const allowed = constraint.allowed(100);
  if (allowed == nullptr) {
    return std::nullopt;
  }
  std::vector<TokenId> ids;
  allowed->for_each([&ids](TokenId id) { ids.push_back(id); });
  return ids;
}

std::string state_name(SpanState state) {
  switch (state) {
    case SpanState::kFree:
      return "FREE";
    case SpanState::kName:
      return "IN_NAME";
    case SpanState::kKey:
      break;
  }
  return "IN_ARG_KEY";
}

TEST(NameConstraintGoldenTest, EveryTokenHasTheTextOfTheReference) {
  const Json expected = read_json_file(test::golden("generate/token_strings.json"));
  ASSERT_EQ(tiny_texts()->size(), static_cast<TokenId>(expected.size()));
  for (std::size_t id = 0; id < expected.size(); ++id) {
    EXPECT_EQ(tiny_texts()->text(static_cast<TokenId>(id)), expected[id].get<std::string>())
        << "token " << id;
  }
}

TEST(NameConstraintGoldenTest, TrackerFollowsEveryCharacter) {
  const Json cases = read_json_file(test::golden("generate/state_machine.json"));
  ASSERT_FALSE(cases.empty());
  for (const Json& golden : cases) {
    const auto text = golden.at("text").get<std::string>();
    CallTracker tracker;
    std::string states;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t length = std::max<std::size_t>(1, utf8_length_at(text, i));
      tracker.feed(std::string_view(text).substr(i, length));
      states += tracker.state() == SpanState::kFree
                    ? 'F'
                    : (tracker.state() == SpanState::kName ? 'N' : 'K');
      i += length;
    }
    EXPECT_EQ(states, golden.at("state_after_each_character").get<std::string>()) << text;
  }
}

TEST(NameConstraintGoldenTest, AllowsWhatTheReferenceAllows) {
  const Json scripts = read_json_file(test::golden("generate/constrained_script.json"));
  ASSERT_FALSE(scripts.empty());
  std::int64_t restricted = 0;
  for (const Json& script : scripts) {
    SCOPED_TRACE(script.at("why").get<std::string>());
    NameConstraint constraint(tiny_texts(), script.at("tools").get<std::string>(),
                              DeclaredKeys::kReference);
    for (const Json& step : script.at("steps")) {
      const CallTracker& tracker = constraint.tracker();
      EXPECT_EQ(state_name(tracker.state()), step.at("state").get<std::string>());
      EXPECT_EQ(tracker.span(), step.at("span").get<std::string>());
      EXPECT_EQ(constraint.fallback(), step.at("fallback").get<bool>());
      const auto allowed = allowed_ids(constraint);
      ASSERT_EQ(allowed.has_value(), !step.at("allowed").is_null()) << "span " << tracker.span();
      if (allowed) {
        EXPECT_EQ(*allowed, step.at("allowed").get<std::vector<TokenId>>())
            << "span " << tracker.span();
        ++restricted;
      }
      constraint.accept(step.at("token").get<TokenId>());
    }
    const Json& end = script.at("end");
    EXPECT_EQ(state_name(constraint.tracker().state()), end.at("state").get<std::string>());
    EXPECT_EQ(constraint.tracker().tool(), end.at("tool").get<std::string>());
    EXPECT_EQ(constraint.tracker().in_arguments(), end.at("in_arguments").get<bool>());
    EXPECT_EQ(constraint.tracker().depth(), end.at("depth").get<std::int64_t>());
  }
  EXPECT_GT(restricted, 0);
}

TEST(NameConstraintTest, CountsTheStepsThatItRestricts) {
  NameConstraint constraint(tiny_texts(), R"([{"name":"stop"}])");
  EXPECT_EQ(constraint.allowed(100), nullptr) << "free before any name";
  for (const TokenId id : tiny_tokenizer().encode(R"([{"name":")")) {
    constraint.accept(id);
  }
  EXPECT_EQ(constraint.masked_steps(), 0);
  ASSERT_NE(constraint.allowed(100), nullptr);
  EXPECT_EQ(constraint.masked_steps(), 1);
}

TEST(NameConstraintTest, ACopyGoesItsOwnWay) {
  NameConstraint constraint(tiny_texts(), R"([{"name":"stop"},{"name":"wait"}])");
  for (const TokenId id : tiny_tokenizer().encode(R"([{"name":")")) {
    constraint.accept(id);
  }
  const auto copy = constraint.clone();
  const auto before = *copy->allowed(100);
  constraint.accept(tiny_texts()->equal_to("s").front());
  EXPECT_EQ(*copy->allowed(100), before);
  EXPECT_NE(*constraint.allowed(100), before);
}

TEST(NameConstraintTest, AllowedTokensSpellTheDeclaredNameAndNothingElse) {
  NameConstraint constraint(tiny_texts(), R"([{"name":"stop"},{"name":"stow"}])");
  for (const TokenId id : tiny_tokenizer().encode(R"([{"name":")")) {
    constraint.accept(id);
  }
  while (constraint.tracker().state() == SpanState::kName) {
    const auto allowed = allowed_ids(constraint);
    ASSERT_TRUE(allowed.has_value()) << constraint.tracker().span();
    constraint.accept(allowed->back());
  }
  EXPECT_THAT(constraint.tracker().tool(), ::testing::AnyOf("stop", "stow"));
}

std::vector<std::string> keys_after(std::string_view tools, DeclaredKeys style,
                                    std::initializer_list<std::string_view> candidates) {
  std::vector<std::string> keys;
  for (const std::string_view key : candidates) {
    NameConstraint constraint(tiny_texts(), tools, style);
    std::string text = R"([{"name":"find","arguments":{")";
    for (const TokenId id : tiny_tokenizer().encode(text)) {
      constraint.accept(id);
    }
    EXPECT_EQ(constraint.tracker().state(), SpanState::kKey);
    const auto allowed = allowed_ids(constraint);
    const auto& first = tiny_texts()->equal_to(key.substr(0, 1));
    if (allowed && !first.empty() &&
        std::binary_search(allowed->begin(), allowed->end(), first.front())) {
      keys.emplace_back(key);
    }
  }
  return keys;
}

TEST(NameConstraintTest, KnowsThePropertiesOfJsonSchemaTools) {
  constexpr std::string_view kSchema =
      R"([{"name":"find","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}])";
  EXPECT_THAT(keys_after(kSchema, DeclaredKeys::kSchema, {"city", "properties"}),
              ElementsAre("city"));
  EXPECT_THAT(keys_after(kSchema, DeclaredKeys::kReference, {"city", "properties"}),
              ElementsAre("properties"));
  // A flat parameter that happens to be called "properties" stays one.
  constexpr std::string_view kFlat =
      R"([{"name":"find","parameters":{"type":{"type":"string"},"properties":{"type":"string"}}}])";
  EXPECT_THAT(keys_after(kFlat, DeclaredKeys::kSchema, {"type", "properties", "city"}),
              ElementsAre("type", "properties"));
}

TEST(NameConstraintTest, BrokenToolsConstrainNothing) {
  for (const std::string_view tools :
       {"", "nonsense", "{}", "[]", "[1,null,{\"name\":5}]", "[{\"name\":\"x\"", "\"[]\""}) {
    NameConstraint constraint(tiny_texts(), tools);
    for (const TokenId id : tiny_tokenizer().encode(R"([{"name":"anything","arguments":{"k)")) {
      EXPECT_FALSE(allowed_ids(constraint).has_value()) << tools;
      constraint.accept(id);
    }
    EXPECT_TRUE(constraint.fallback()) << tools;
  }
}

// Slow and obvious: every token against every word.
std::vector<TokenId> allowed_by_definition(const std::vector<std::string>& words,
                                           const std::string& span) {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < tiny_texts()->size(); ++id) {
    const std::string text(tiny_texts()->text(id));
    const auto quote = text.find('"');
    const std::string spelled = span + text.substr(0, quote);
    const bool fits = std::any_of(words.begin(), words.end(), [&](const std::string& word) {
      return quote == std::string::npos ? word.starts_with(spelled) : word == spelled;
    });
    if (!text.empty() && fits) {
      ids.push_back(id);
    }
  }
  return ids;
}

TEST(NameConstraintTest, LookupEqualsTheDefinition) {
  Random random(3);
  const std::vector<std::string> words = {"set_timer", "set_timer_now", "stop", "s", "get \u00e9t"};
  for (int round = 0; round < 20; ++round) {
    NameConstraint constraint(
        tiny_texts(),
        R"([{"name":"set_timer"},{"name":"set_timer_now"},{"name":"stop"},{"name":"s"},)"
        "{\"name\":\"get \u00e9t\"}]");
    for (const TokenId id : tiny_tokenizer().encode(R"([{"name":")")) {
      constraint.accept(id);
    }
    while (constraint.tracker().state() == SpanState::kName) {
      const auto allowed = allowed_ids(constraint);
      const auto expected = allowed_by_definition(words, constraint.tracker().span());
      ASSERT_EQ(allowed.value_or(std::vector<TokenId>()), expected) << constraint.tracker().span();
      ASSERT_FALSE(expected.empty());
      constraint.accept(expected[random.below(static_cast<std::uint32_t>(expected.size()))]);
    }
    EXPECT_THAT(words, ::testing::Contains(constraint.tracker().tool()));
  }
}

TEST(NameConstraintTest, AToolOfTheSameNameReplacesTheEarlier) {
  constexpr std::string_view kTools =
      R"([{"name":"find","parameters":{"old":{}}},{"name":"find","parameters":{"new":{}}}])";
  EXPECT_THAT(keys_after(kTools, DeclaredKeys::kSchema, {"old", "new"}), ElementsAre("new"));
}

TEST(NameConstraintTest, ATokenOutsideTheVocabularyIsAnError) {
  NameConstraint constraint(tiny_texts(), "[]");
  EXPECT_THROW(constraint.accept(tiny_texts()->size()), Error);
  EXPECT_THROW(constraint.accept(-1), Error);
}

}  // namespace
}  // namespace needle
