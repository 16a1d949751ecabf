// The bytes that each token adds to an answer, as a trie: grammars walk it to find what may follow.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/decode/text_automaton.h"
#include "needle/decode/token_set.h"
#include "needle/text/tokenizer.h"

namespace needle {

// Immutable: safe from several threads. Control ids, <tool_call>, <tools> and unused ids have no
// bytes; where two tokens have the same bytes only one is in the trie, pieces before byte tokens.
class TokenTrie {
 public:
  static constexpr std::int32_t kRoot = 0;

  struct Node {
    std::int32_t first_child = 0;  // children lie side by side, ascending by byte
    std::int32_t child_count = 0;
    TokenId token = -1;  // that ends here; -1: none
    std::uint8_t byte = 0;
    bool has_quote_below = false;  // a token on this way or below it holds a quote
  };

  // Throws Error if some byte cannot be spelled on its own: no grammar could be followed then.
  explicit TokenTrie(const Tokenizer& tokenizer);

  TokenId vocab_size() const { return static_cast<TokenId>(texts_.size()); }
  std::string_view text(TokenId id) const { return texts_[static_cast<std::size_t>(id)]; }
  const Node& node(std::int32_t index) const { return nodes_[static_cast<std::size_t>(index)]; }
  std::span<const Node> children(const Node& node) const {
    return std::span(nodes_).subspan(static_cast<std::size_t>(node.first_child),
                                     static_cast<std::size_t>(node.child_count));
  }
  const Node* child(const Node& node, std::uint8_t byte) const;  // nullptr if there is none
  std::size_t longest() const { return longest_; }               // bytes of a token
  // Answers begin with a space that decoding takes away again (the tokenizer's dummy prefix).
  bool has_dummy_prefix() const { return has_dummy_prefix_; }

  // Tokens that stay inside a JSON string whose text follows `automaton`, from `state` on and
  // between two characters, into `inside`; the same where any text may stand.
  void inside_string(const TextAutomaton& automaton, std::int32_t state, TokenSet& inside) const;
  const TokenSet& inside_any_string() const { return inside_any_string_; }

  // Tokens that spell text[i:] with as few as possible, for i = 0 .. size; the last is 0.
  std::vector<std::int32_t> fewest_tokens(std::string_view text) const;

 private:
  std::vector<std::string> texts_;  // empty: not in the trie
  std::vector<Node> nodes_;
  std::size_t longest_ = 0;
  bool has_dummy_prefix_ = false;
  TokenSet inside_any_string_;
};

}  // namespace needle
