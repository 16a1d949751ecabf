// What an answer may be, compiled from tools or a JSON Schema: nodes that grammar_machine.h follows
// byte by byte.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/decode/grammar_options.h"
#include "needle/decode/kept_tokens.h"
#include "needle/decode/number_automaton.h"
#include "needle/decode/schema_shapes.h"
#include "needle/decode/text_automaton.h"
#include "needle/decode/token_set.h"
#include "needle/decode/token_trie.h"

namespace needle {

// Immutable but for caches behind a mutex: safe from several threads.
class Grammar {
 public:
  enum class Kind : std::uint8_t { kLiterals, kNumber, kString, kArray, kObject };
  struct Node {
    Kind kind = Kind::kLiterals;
    std::int32_t index = 0;
  };
  // A grounded value costs what a request's query makes of it, so it is counted: costs are tokens,
  // and one of these for each grounded value.
  static constexpr std::int64_t kGroundedValue = std::int64_t{1} << 32;
  // The ways a value may go, and the least cost of one.
  struct Value {
    std::vector<Node> nodes;
    std::int64_t tokens = 0;
  };

  // One of some texts: sorted, without repeats.
  struct Literals {
    std::vector<std::string> texts;
    std::vector<std::vector<std::int32_t>> tokens;  // fewest for texts[i] from each byte on
  };
  struct Number {
    NumberAutomaton automaton;
    bool grounded = false;  // must stand in the query
  };
  struct String {
    std::int32_t automaton = 0;  // index into automata
    std::int64_t min_length = 0, max_length = -1;
    bool grounded = false;
  };
  struct Array {
    std::vector<Value> prefix;
    std::optional<Value> items;  // behind the prefix; nothing: no more
    std::int64_t min_items = 0, max_items = -1;
    bool unique = false;  // then all values are literals
  };
  struct Object {
    Literals keys;  // "\"name\":", in this order
    std::vector<Value> values;
    std::vector<bool> required;
    std::vector<std::uint64_t> key_hashes;  // sorted; of the names, as hash_text
    std::optional<Value> extra;             // of keys that are not declared
  };
  // One call of a tool: its head up to the arguments, and these.
  struct Calls {
    Literals heads;  // {"name":"...","arguments":
    std::vector<Value> arguments;
    std::vector<std::string> names;  // as heads
  };

  // Answers of a FunctionCaller: a list of calls of the tools that `tools_json` declares (any style
  // that parse_tools reads). Throws Error or DataError naming the place in the tools where they
  // contradict themselves, are no tools, or have the same name.
  static std::shared_ptr<const Grammar> of_tools(std::string_view tools_json,
                                                 std::shared_ptr<const TokenTrie> trie,
                                                 const GrammarOptions& options = {});
  // One JSON value that fits `schema`.
  static std::shared_ptr<const Grammar> of_schema(const JsonValue& schema,
                                                  std::shared_ptr<const TokenTrie> trie,
                                                  const GrammarOptions& options = {});

  // Keywords that answers need not obey, with the reason.
  const std::vector<Unenforced>& unenforced() const { return unenforced_; }
  const TokenTrie& trie() const { return *trie_; }
  bool has_grounded() const { return has_grounded_; }

  const Calls* calls() const { return calls_ ? &*calls_ : nullptr; }  // of_tools
  const Value& root() const { return root_; }                         // of_schema
  const Literals& literals(std::int32_t index) const { return at(literals_, index); }
  std::int32_t number_count() const { return static_cast<std::int32_t>(numbers_.size()); }
  const Number& number(std::int32_t index) const { return at(numbers_, index); }
  const String& string(std::int32_t index) const { return at(strings_, index); }
  const Array& array(std::int32_t index) const { return at(arrays_, index); }
  const Object& object(std::int32_t index) const { return at(objects_, index); }
  const TextAutomaton& automaton(std::int32_t index) const { return at(automata_, index); }
  static constexpr std::int32_t kAnything = 0;  // the automaton of all texts

  // Tokens that stay inside a string from `state` of an automaton on, between two characters: all
  // that `tokens` holds then. Kept, in room made with the grammar.
  void inside(std::int32_t automaton, std::int32_t state, TokenSet& tokens) const;

  // The tokens of `text`, which begins with <tool_call> as a special symbol; kept in such room,
  // too, since the same runs of forced text come up in every answer. Allocates only if `ids` or
  // the encoder's buffers are too small.
  void encode(TokenEncoder& encoder, std::string_view text, std::vector<TokenId>& ids) const;

 private:
  friend class GrammarCompiler;
  explicit Grammar(std::shared_ptr<const TokenTrie> trie) : trie_(std::move(trie)) {}
  void make_room();  // once it is compiled

  template <typename T>
  static const T& at(const std::vector<T>& all, std::int32_t index) {
    return all[static_cast<std::size_t>(index)];
  }

  std::shared_ptr<const TokenTrie> trie_;
  std::vector<Literals> literals_;
  std::vector<Number> numbers_;
  std::vector<String> strings_;
  std::vector<Array> arrays_;
  std::vector<Object> objects_;
  std::vector<TextAutomaton> automata_;
  std::optional<Calls> calls_;
  Value root_;
  std::vector<Unenforced> unenforced_;
  bool has_grounded_ = false;

  mutable KeptTokens encoded_;
  mutable KeptSets inside_;
  std::vector<std::size_t> first_state_;  // of each automaton, among those of inside_
};

// FNV-1a over code points, begun with kTextHash.
inline constexpr std::uint64_t kTextHash = 0xCBF29CE484222325;
inline std::uint64_t hash_code_point(std::uint64_t hash, std::uint32_t code_point) {
  return (hash ^ code_point) * 0x100000001B3;
}

}  // namespace needle
