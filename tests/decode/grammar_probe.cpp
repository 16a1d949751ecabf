// Grammars from outside: values that random logits make of schemas (for an independent validator),
// and what compiling and masking take (scripts/bench/grammar).
//
// usage: needle-grammar-probe samples COUNT TABLE.json...    lines {"schema","value"}
//        needle-grammar-probe schemas TOKENIZER < lines {"schema","valid","invalid"}
//        needle-grammar-probe answers TOKENIZER [auto] < rows {"query","tools","answers"}; auto:
//        strings are grounded
#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "needle/core/file.h"
#include "needle/decode/grammar_constraint.h"
#include "needle/decode/token_loop.h"

#include "tests/decode/grammar_support.h"
#include "tests/decode/random_schema.h"
#include "tests/decode/reference_row.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

void print(const JsonValue& line) { std::cout << write_compact(line, JsonEscapes::kUtf8) << "\n"; }

void samples(std::uint64_t count, std::span<const std::string> tables) {
  std::vector<JsonValue> schemas;
  for (const std::string& path : tables) {
    const JsonValue table = test::parsed(read_file(path));
    for (const JsonValue& row : table.items()) {
      schemas.push_back(*row.find("schema"));
    }
  }
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    Random random(seed);
    const bool from_table = seed % 2 == 0 && !schemas.empty();
    const JsonValue schema =
        from_table ? schemas[seed / 2 % schemas.size()] : test::random_schema(random, 3);
    const auto grammar =
        Grammar::of_schema(schema, test::tiny_trie(), {.escapes = JsonEscapes::kUtf8});
    GrammarConstraint constraint(grammar, test::tiny_tokenizer());
    test::RandomSession session(test::tiny_tokenizer().vocab_size(), seed);
    GenerateOptions options;
    options.constraint = &constraint;
    options.max_gen_len = constraint.min_tokens() + 1 + random.below(80);
    const GeneratedTokens tokens = generate_tokens(session, options);
    const std::string text = test::tiny_tokenizer().decode(std::span(tokens.ids).subspan(1));
    JsonValue line = JsonValue::object();
    line.set("schema", schema);
    line.set("text", JsonValue::string(text));
    line.set("whole", JsonValue::boolean(tokens.stop == StopReason::kEos));
    print(line);
  }
}

// Greedy tokens of `text`, longest first, as the peers are walked.
std::vector<TokenId> greedy(const TokenTrie& trie, std::string_view text) {
  std::vector<TokenId> ids;
  while (!text.empty()) {
    const TokenTrie::Node* at = &trie.node(TokenTrie::kRoot);
    TokenId best = -1;
    std::size_t length = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      at = trie.child(*at, static_cast<std::uint8_t>(text[i]));
      if (at == nullptr) {
        break;
      }
      if (at->token >= 0) {
        best = at->token;
        length = i + 1;
      }
    }
    ids.push_back(best);
    text.remove_prefix(length);
  }
  return ids;
}

bool walk(GrammarConstraint& constraint, std::span<const TokenId> ids, JsonValue* masks) {
  for (const TokenId id : ids) {
    const auto start = Clock::now();
    const TokenSet* const allowed = constraint.allowed(100000);
    if (masks != nullptr) {
      masks->items().push_back(JsonValue::number(microseconds(Clock::now() - start)));
    }
    if (!allowed->contains(id)) {
      return false;
    }
    constraint.accept(id);
  }
  return constraint.allowed(100000)->contains(kEosId);
}

void schemas(const Tokenizer& tokenizer) {
  const auto trie = std::make_shared<const TokenTrie>(tokenizer);
  std::string text;
  while (std::getline(std::cin, text)) {
    const JsonValue row = test::parsed(text);
    JsonValue line = JsonValue::object();
    double compile = 1e9;
    std::shared_ptr<const Grammar> grammar;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = Clock::now();
      grammar = Grammar::of_schema(*row.find("schema"), trie, {.escapes = JsonEscapes::kUtf8});
      compile = std::min(compile, microseconds(Clock::now() - start));
    }
    JsonValue masks = JsonValue::array();
    for (const char* verdict : {"valid", "invalid"}) {
      std::int64_t accepted = 0;
      for (const JsonValue& value : row.find(verdict)->items()) {
        GrammarConstraint constraint(grammar, tokenizer);
        constraint.accept(kToolCallId);
        const std::string spelled =
            (trie->has_dummy_prefix() ? " " : "") + write_compact(value, JsonEscapes::kUtf8);
        accepted += walk(constraint, greedy(*trie, spelled), &masks) ? 1 : 0;
      }
      line.set(verdict, JsonValue::integer(accepted));
    }
    line.set("unenforced", JsonValue::integer(std::ssize(grammar->unenforced())));
    line.set("compile_us", JsonValue::number(compile));
    line.set("mask_us", std::move(masks));
    print(line);
  }
}

// Along reference answers, in the spelling of training: what is forced, and what masks take.
void answers(const Tokenizer& tokenizer, Grounding grounding) {
  const auto trie = std::make_shared<const TokenTrie>(tokenizer);
  std::string text;
  while (std::getline(std::cin, text)) {
    const test::ReferenceRow row(text);
    const auto begin = Clock::now();
    const auto grammar = Grammar::of_tools(row.tools.tools_json, trie, {.grounding = grounding});
    const double compile = microseconds(Clock::now() - begin);
    GrammarConstraint constraint(grammar, tokenizer, {}, row.query);
    std::vector<TokenId> ids{kToolCallId};
    const std::vector<TokenId> encoded = tokenizer.encode(row.answer);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    ids.push_back(kEosId);
    JsonValue line = JsonValue::object(), masks = JsonValue::array(), runs = JsonValue::array();
    std::int64_t forced = 0, other = 0;
    std::string shown_tokens;  // forced ones in < >
    const auto show = [&](TokenId id, bool is_forced) {
      const std::string piece(id == kEosId ? "eos" : id == kToolCallId ? "call" : trie->text(id));
      shown_tokens += is_forced ? "<" + piece + ">" : "|" + piece;
    };
    bool fits = true;
    for (std::size_t at = 0; at < ids.size() && fits;) {
      auto start = Clock::now();
      const std::span<const TokenId> shown = constraint.forced(1000);
      const std::vector<TokenId> run(shown.begin(), shown.end());
      runs.items().push_back(JsonValue::number(microseconds(Clock::now() - start)));
      bool only = false;
      if (run.empty()) {
        start = Clock::now();
        const TokenSet* const allowed = constraint.allowed(1000);
        masks.items().push_back(JsonValue::number(microseconds(Clock::now() - start)));
        only = allowed->count() == 1;
        fits = allowed->contains(ids[at]);
        forced += only ? 1 : 0;
        show(ids[at], only);
        if (fits && ids[at] != kEosId) {
          constraint.accept(ids[at]);
        }
        ++at;
      }
      for (const TokenId id : run) {
        other += at >= ids.size() || id != ids[at] ? 1 : 0;
        ++forced;
        show(id, true);
        if (at < ids.size() && ids[at] != kEosId && id == ids[at]) {
          constraint.accept(id);
        }
        ++at;
      }
      fits = fits && other == 0;
    }
    line.set("fits", JsonValue::boolean(fits));
    line.set("answer", JsonValue::string(shown_tokens));
    line.set("tools", JsonValue::integer(std::ssize(row.tools.original_by_snake)));
    line.set("tokens", JsonValue::integer(std::ssize(ids)));
    line.set("forced", JsonValue::integer(forced));
    line.set("compile_us", JsonValue::number(compile));
    line.set("mask_us", std::move(masks));
    line.set("forced_us", std::move(runs));
    print(line);
  }
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() >= 2 && arguments[0] == "samples") {
      needle::samples(std::stoull(arguments[1]), std::span(arguments).subspan(2));
    } else if (arguments.size() == 2 && arguments[0] == "schemas") {
      needle::schemas(needle::Tokenizer::load(arguments[1]));
    } else if (arguments.size() >= 2 && arguments[0] == "answers") {
      const bool grounded = arguments.size() > 2 && arguments[2] == "auto";
      needle::answers(needle::Tokenizer::load(arguments[1]),
                      grounded ? needle::Grounding::kAuto : needle::Grounding::kOff);
    } else {
      std::cerr << "usage: needle-grammar-probe samples COUNT TABLE.json... | schemas TOKENIZER | "
                   "answers TOKENIZER [auto]\n";
      return 2;
    }
  } catch (const std::exception& error) {
    std::cerr << "needle-grammar-probe: " << error.what() << "\n";
    return 1;
  }
}
