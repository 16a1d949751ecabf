// Random schemas and logits: what property tests of grammars are fed with.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/core/random.h"
#include "needle/decode/engine.h"

namespace needle::test {

// Logits without any sense, another draw at every position.
class RandomSession : public EngineSession {
 public:
  RandomSession(std::int64_t vocab_size, std::uint64_t seed)
      : seed_(seed), logits_(static_cast<std::size_t>(vocab_size)) {}

  std::span<const float> feed(std::span<const TokenId> tokens,
                              const TokenSet* /*wanted*/) override {
    position_ += std::ssize(tokens);
    Random rng(seed_ * 1000003 + static_cast<std::uint64_t>(position_));
    for (float& logit : logits_) {
      logit = static_cast<float>(rng.below(1 << 20)) / (1 << 20);
    }
    return logits_;
  }
  std::int64_t position() const override { return position_; }
  void rewind(std::int64_t position) override { position_ = position; }

 private:
  std::uint64_t seed_;
  std::int64_t position_ = 0;
  std::vector<float> logits_;
};

// Satisfiable, of keywords that grammars enforce.
inline JsonValue random_schema(Random& rng, int depth) {
  const auto below = [&rng](std::uint64_t count) {
    return static_cast<std::int64_t>(rng.below(static_cast<std::uint32_t>(count)));
  };
  const auto text = [&rng, &below] {
    static const std::vector<std::string> kTexts = {"a",  "ab", "b c",  "é",    "x\"y",
                                                    "on", "1",  "日本", "tab\t"};
    return kTexts[static_cast<std::size_t>(below(kTexts.size()))];
  };
  JsonValue schema = JsonValue::object();
  const auto set = [&schema](std::string_view key, JsonValue value) {
    schema.set(key, std::move(value));
  };
  const auto number = [](std::int64_t value) { return JsonValue::integer(value); };
  switch (below(depth > 0 ? 10 : 6)) {
    case 0: {
      set("type", JsonValue::string(below(2) == 0 ? "integer" : "number"));
      const std::int64_t low = below(2000) - 1000;
      if (below(2) == 0) {
        set(below(2) == 0 ? "minimum" : "exclusiveMinimum", number(low));
      }
      if (below(2) == 0) {
        set("maximum", number(low + 10 + below(500)));
      }
      if (below(3) == 0) {
        set("multipleOf", number(1 + below(5)));
      }
      break;
    }
    case 1: {
      set("type", JsonValue::string("string"));
      const std::int64_t least = below(5);
      if (below(2) == 0) {
        set("minLength", number(least));
      }
      if (below(2) == 0) {
        set("maxLength", number(least + below(6)));
      }
      break;
    }
    case 2: {
      static const std::vector<std::string> kPatterns = {"^[a-c]{2,4}$",    "^(x|yy)+$", "[0-9]",
                                                         "^\\d{3}-\\d{2}$", "^.{3}$",    "é+$"};
      set("type", JsonValue::string("string"));
      set("pattern",
          JsonValue::string(kPatterns[static_cast<std::size_t>(below(kPatterns.size()))]));
      break;
    }
    case 3: {
      static const std::vector<std::string> kFormats = {
          "date",     "time", "date-time", "duration", "email",
          "hostname", "ipv4", "ipv6",      "uuid",     "uri"};
      set("type", JsonValue::string("string"));
      set("format", JsonValue::string(kFormats[static_cast<std::size_t>(below(kFormats.size()))]));
      break;
    }
    case 4: {
      JsonValue values =
          JsonValue::array({JsonValue::string(text()), number(below(100)), JsonValue()});
      values.items().resize(static_cast<std::size_t>(1 + below(3)));
      set("enum", std::move(values));
      break;
    }
    case 5:
      set("type", JsonValue::array({JsonValue::string("boolean"),
                                    JsonValue::string(below(2) == 0 ? "null" : "integer")}));
      break;
    case 6: {
      set("type", JsonValue::string("array"));
      set("items", random_schema(rng, depth - 1));
      const std::int64_t least = below(3);
      set("minItems", number(least));
      if (below(2) == 0) {
        set("maxItems", number(least + below(4)));
      }
      break;
    }
    case 7:
      set("anyOf",
          JsonValue::array({random_schema(rng, depth - 1), random_schema(rng, depth - 1)}));
      break;
    default: {
      JsonValue properties = JsonValue::object(), required = JsonValue::array();
      for (std::int64_t i = below(4); i >= 0; --i) {
        const std::string name = text() + std::to_string(i);
        properties.set(name, random_schema(rng, depth - 1));
        if (below(2) == 0) {
          required.items().push_back(JsonValue::string(name));
        }
      }
      set("type", JsonValue::string("object"));
      set("properties", std::move(properties));
      set("required", std::move(required));
      if (below(3) == 0) {
        set("additionalProperties", random_schema(rng, depth - 1));
      }
    }
  }
  return schema;
}

}  // namespace needle::test
