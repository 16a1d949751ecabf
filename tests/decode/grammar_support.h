// What tests of grammars share: a tokenizer, parsing, acceptance of a whole text.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/decode/grammar.h"
#include "needle/decode/grammar_machine.h"

#include "tests/support/golden.h"

namespace needle::test {

inline const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(golden("tokenizer/tiny.model"));
  return tokenizer;
}

inline std::shared_ptr<const TokenTrie> tiny_trie() {
  static const auto trie = std::make_shared<const TokenTrie>(tiny_tokenizer());
  return trie;
}

inline JsonValue parsed(std::string_view text) {
  JsonParseResult result = parse_json_value(text);
  NEEDLE_CHECK(result.value.has_value(), "not JSON: {}: {}", result.error, text);
  return *std::move(result.value);
}

// Byte by byte, without the tokenizer's space before an answer.
inline bool accepts(const std::shared_ptr<const Grammar>& grammar, std::string_view text,
                    const CallLimits& limits = {}) {
  GrammarMachine machine(grammar, limits, nullptr);
  GrammarMachine::Threads threads = machine.start(), next;
  const std::string whole = (grammar->trie().has_dummy_prefix() ? " " : "") + std::string(text);
  for (const char byte : whole) {
    machine.step(threads, static_cast<std::uint8_t>(byte), next);
    threads.swap(next);
  }
  return machine.may_end(threads);
}

}  // namespace needle::test
