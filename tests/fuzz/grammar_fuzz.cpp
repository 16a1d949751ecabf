// Any bytes as a JSON Schema, as tools or as a query: compiling never crashes, and whatever way is
// taken through what is allowed ends inside the budget in JSON.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/decode/grammar.h"
#include "needle/decode/grammar_constraint.h"
#include "needle/text/tokenizer.h"

namespace {

using namespace needle;  // NOLINT(google-build-using-namespace): a program of one file

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load(NEEDLE_FUZZ_TOKENIZER);
  return loaded;
}

std::shared_ptr<const TokenTrie> trie() {
  static const auto made = std::make_shared<const TokenTrie>(tokenizer());
  return made;
}

TokenId any_of(const TokenSet& allowed, Random& random) {
  auto left = random.below(static_cast<std::uint32_t>(allowed.count()));
  TokenId chosen = -1;
  allowed.for_each([&](TokenId id) {
    if (left-- == 0) {
      chosen = id;
    }
  });
  return chosen;
}

// The answer's text; aborts where the constraint breaks its word.
void walk(GrammarConstraint& constraint, Random& random) {
  std::int64_t left = constraint.min_tokens() + random.below(40);
  std::vector<TokenId> ids;
  bool ended = false;
  while (left > 0 && !ended) {
    const auto forced = constraint.forced(left);
    std::vector<TokenId> run(forced.begin(), forced.end());
    if (run.empty()) {
      const TokenSet* const allowed = constraint.allowed(left);
      if (allowed->count() == 0) {
        std::abort();
      }
      run.push_back(any_of(*allowed, random));
    }
    for (const TokenId id : run) {
      if (id == kEosId || left == 0) {
        ended = true;
        break;
      }
      constraint.accept(id);
      ids.push_back(id);
      --left;
    }
  }
  const std::string text = tokenizer().decode(std::span(ids).subspan(1));
  if (!constraint.is_whole() || !parse_json_value(text).value) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) {
    return 0;
  }
  const std::uint8_t how = data[0];
  Random random(data[1]);
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const GrammarOptions options{
      .escapes = (how & 1U) != 0 ? JsonEscapes::kUtf8 : JsonEscapes::kAscii,
      .grounding = (how & 2U) != 0 ? Grounding::kAuto : Grounding::kOff};
  try {
    std::shared_ptr<const Grammar> grammar;
    if ((how & 4U) != 0) {
      grammar = Grammar::of_tools(text, trie(), options);
    } else if (const JsonParseResult schema = parse_json_value(text); schema.value) {
      grammar = Grammar::of_schema(*schema.value, trie(), options);
    }
    if (grammar == nullptr) {
      return 0;
    }
    GrammarConstraint constraint(grammar, tokenizer(), {}, text.substr(0, 200));
    if (constraint.min_tokens() < 2000) {
      walk(constraint, random);
    }
  } catch (const Error&) {
  }
  return 0;
}
