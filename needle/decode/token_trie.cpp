#include "needle/decode/token_trie.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "needle/core/error.h"
#include "needle/decode/byte_piece.h"
#include "needle/decode/string_reader.h"

namespace needle {
namespace {

std::string token_bytes(const Tokenizer& tokenizer, TokenId id) {
  constexpr std::string_view kSpaceMark = "\u2581";
  if (id == kToolCallId || id == kToolsId) {
    return "";
  }
  switch (tokenizer.piece_type(id)) {
    case PieceType::kControl:
    case PieceType::kUnknown:
    case PieceType::kUnused:
      return "";
    case PieceType::kByte:
      return std::string(1, static_cast<char>(byte_of_piece(tokenizer, id).value_or(0)));
    case PieceType::kNormal:
    case PieceType::kUserDefined:
      break;
  }
  std::string text;
  for (std::string_view piece = tokenizer.piece(id); !piece.empty();) {
    const bool space = piece.starts_with(kSpaceMark);
    text += space ? ' ' : piece.front();
    piece.remove_prefix(space ? kSpaceMark.size() : 1);
  }
  return text;
}

// Walks the trie with a string automaton; tokens that end the string are left to the machine.
class InsideWalk {
 public:
  InsideWalk(const TokenTrie& trie, const TextAutomaton& automaton, TokenSet& found)
      : trie_(trie), automaton_(automaton), found_(found) {}

  void walk(const TokenTrie::Node& node, const StringReader& reader, std::int32_t state) {
    for (const TokenTrie::Node& child : trie_.children(node)) {
      StringReader next = reader;
      std::uint32_t code_point = 0;
      std::int32_t to = state;
      const string_reader::Event event = string_reader::advance(next, child.byte, code_point);
      if (event == string_reader::Event::kCharacter) {
        to = automaton_.advance(state, code_point);
      } else if (event != string_reader::Event::kInside || !is_possible(next, state)) {
        continue;
      }
      if (to < 0) {
        continue;
      }
      if (child.token >= 0) {
        found_.insert(child.token);
      }
      walk(child, next, to);
    }
  }

 private:
  bool is_possible(const StringReader& reader, std::int32_t state) const {
    for (const string_reader::Interval& interval : string_reader::reach(reader)) {
      if (!interval.empty() && automaton_.bytes_behind(state, interval.first, interval.last) >= 0) {
        return true;
      }
    }
    return false;
  }

  const TokenTrie& trie_;
  const TextAutomaton& automaton_;
  TokenSet& found_;
};

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer) {
  std::map<std::string_view, TokenId> tokens;  // in the order of a depth-first walk
  texts_.resize(static_cast<std::size_t>(tokenizer.vocab_size()));
  for (TokenId id = 0; id < vocab_size(); ++id) {
    texts_[static_cast<std::size_t>(id)] = token_bytes(tokenizer, id);
  }
  for (const bool byte_pieces : {false, true}) {
    for (TokenId id = 0; id < vocab_size(); ++id) {
      if (!text(id).empty() && (tokenizer.piece_type(id) == PieceType::kByte) == byte_pieces) {
        tokens.try_emplace(text(id), id);
      }
    }
  }

  // Level by level, so that siblings lie side by side: each entry is a node and its tokens.
  using Range = std::pair<std::map<std::string_view, TokenId>::const_iterator,
                          std::map<std::string_view, TokenId>::const_iterator>;
  std::vector<Range> ranges{{tokens.begin(), tokens.end()}};
  std::vector<std::size_t> depths{0};
  nodes_.emplace_back();
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    auto [at, end] = ranges[i];
    const std::size_t depth = depths[i];
    if (at != end && at->first.size() == depth && depth > 0) {
      nodes_[i].token = at->second;
      ++at;
    }
    nodes_[i].first_child = static_cast<std::int32_t>(nodes_.size());
    while (at != end) {
      const char byte = at->first[depth];
      const auto begin = at;
      bool quote = false;
      for (; at != end && at->first[depth] == byte; ++at) {
        quote = quote || at->first.find('"') != std::string_view::npos;
      }
      nodes_.push_back({.byte = static_cast<std::uint8_t>(byte), .has_quote_below = quote});
      ranges.emplace_back(begin, at);
      depths.push_back(depth + 1);
      ++nodes_[i].child_count;
      longest_ = std::max(longest_, depth + 1);
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const Node* const found = child(nodes_[kRoot], static_cast<std::uint8_t>(byte));
    if (found == nullptr || found->token < 0) {
      throw Error(
          format("the vocabulary has no token for byte {}: grammars need a tokenizer with byte "
                 "fallback",
                 byte));
    }
  }
  const std::vector<TokenId> empty_list = tokenizer.encode("[]");
  has_dummy_prefix_ = !empty_list.empty() && text(empty_list.front()).starts_with(' ');
  inside_any_string_ = TokenSet(vocab_size());
  inside_string(TextAutomaton::anything(), TextAutomaton::kStart, inside_any_string_);
}

void TokenTrie::inside_string(const TextAutomaton& automaton, std::int32_t state,
                              TokenSet& inside) const {
  inside.clear();
  InsideWalk(*this, automaton, inside).walk(node(kRoot), {}, state);
}

const TokenTrie::Node* TokenTrie::child(const Node& node, std::uint8_t byte) const {
  const std::span<const Node> all = children(node);
  const auto found = std::ranges::lower_bound(all, byte, {}, &Node::byte);
  return found != all.end() && found->byte == byte ? &*found : nullptr;
}

std::vector<std::int32_t> TokenTrie::fewest_tokens(std::string_view text) const {
  std::vector<std::int32_t> fewest(text.size() + 1, 0);
  for (std::size_t begin = text.size(); begin-- > 0;) {
    std::int32_t best = fewest[begin + 1] + 1;
    const Node* at = &nodes_[kRoot];
    for (std::size_t end = begin; end < text.size();) {
      at = child(*at, static_cast<std::uint8_t>(text[end]));
      if (at == nullptr) {
        break;
      }
      ++end;
      if (at->token >= 0) {
        best = std::min(best, fewest[end] + 1);
      }
    }
    fewest[begin] = best;
  }
  return fewest;
}

}  // namespace needle
