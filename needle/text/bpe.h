// Byte pair encoding as SentencePiece does it: of all neighbours whose joined text is a piece, join
// those of the highest score, the leftmost first, until none is left; user-defined symbols are cut
// out before, characters without a piece become their bytes.
// Source: T. Kudo and J. Richardson, "SentencePiece", 2018.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "needle/text/flat_map.h"
#include "needle/text/model_proto.h"
#include "needle/text/special_tokens.h"

namespace needle {

// A token and the bytes of the normalised text that it stands for.
struct BpeToken {
  TokenId id = 0;
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  // Which byte of a character without a piece, or -1: such tokens share their begin and end.
  std::int32_t byte = -1;
};

// Longest user-defined symbol at a place of a text, by a trie over bytes.
class SymbolMatcher {
 public:
  explicit SymbolMatcher(std::span<const ModelProtoPiece> pieces);

  struct Match {
    TokenId id = -1;  // -1: none
    std::size_t bytes = 0;
  };
  // Without `special`, <tool_call> and <tools> do not match.
  Match longest(std::string_view text, std::size_t position, bool special) const noexcept;
  bool any_has_space() const noexcept { return has_space_; }

 private:
  static constexpr TokenId kNoSymbol = -1;
  FlatMap<std::uint32_t> children_;  // (node, byte) -> node; node 0 is the root
  std::vector<TokenId> symbol_at_;   // per node
  std::array<bool, 256> starts_{};   // a symbol begins with this byte
  bool has_space_ = false;
};

// The tables of one vocabulary. Immutable: safe to use from several threads.
class Bpe {
 public:
  // `pieces` must have passed read_model_proto: unique texts, all 256 bytes. Not kept.
  explicit Bpe(std::span<const ModelProtoPiece> pieces);

  // `normalized` is valid UTF-8 of less than 4 GiB. Time grows with n log n at worst. Calls
  // sink(BpeToken) for each token.
  template <class Sink>
  void encode(std::string_view normalized, bool special, Sink&& sink) const;

  const SymbolMatcher& symbols() const noexcept { return matcher_; }

 private:
  // A text that merging may handle: a piece, or a character that only occurs inside pieces.
  using SymbolIndex = std::uint32_t;
  static constexpr SymbolIndex kUnknown = std::numeric_limits<SymbolIndex>::max();
  static constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();
  // Up to here the best pair is looked for by going through all: faster than a heap.
  static constexpr std::size_t kScanLimit = 48;

  struct Merge {
    SymbolIndex merged = kUnknown;
    std::uint32_t rank = kNoMerge;  // 0 is joined first; equal scores have equal ranks
  };
  struct Symbol {
    SymbolIndex index = kUnknown;
    std::uint32_t begin = 0;
    Merge with_next;
  };
  // Characters as classes, for which one table says whether any piece holds the two side by side.
  static constexpr std::size_t kOther = 128;  // not ASCII
  static constexpr std::size_t kSpace = 129;  // U+2581
  static constexpr std::size_t kClasses = 130;
  struct Character {
    SymbolIndex index = kUnknown;
    std::size_t bytes = 1;
    std::size_t character_class = 0;
  };

  class TextIndex;
  // Building, in this order. Returns how many characters there are.
  std::size_t add_characters(std::span<const ModelProtoPiece> pieces);
  void add_pieces(std::span<const ModelProtoPiece> pieces, TextIndex& index);
  void add_merges(std::span<const ModelProtoPiece> pieces, const TextIndex& index);

  Character character_at(std::string_view text, std::size_t position) const noexcept;
  Merge merge_of(SymbolIndex left, SymbolIndex right) const noexcept;
  // Joins in place; `segment` shrinks.
  void merge(std::vector<Symbol>& segment) const;
  void merge_with_heap(std::vector<Symbol>& segment) const;
  template <class Sink>
  void flush(std::vector<Symbol>& segment, std::string_view text, std::size_t end,
             Sink&& sink) const;

  SymbolMatcher matcher_;
  std::vector<TokenId> ids_;         // per SymbolIndex; -1: no piece
  FlatMap<Merge> merges_;            // (left, right)
  FlatMap<SymbolIndex> characters_;  // (0, code point)
  std::array<SymbolIndex, 128> ascii_{};
  std::array<TokenId, 256> bytes_{};
  std::array<std::array<bool, kClasses>, kClasses> joins_{};
};

template <class Sink>
void Bpe::flush(std::vector<Symbol>& segment, std::string_view text, std::size_t end,
                Sink&& sink) const {
  merge(segment);
  for (std::size_t i = 0; i < segment.size(); ++i) {
    const std::uint32_t begin = segment[i].begin;
    const auto stop =
        i + 1 < segment.size() ? segment[i + 1].begin : static_cast<std::uint32_t>(end);
    const TokenId id = segment[i].index == kUnknown ? -1 : ids_[segment[i].index];
    if (id >= 0) {
      sink(BpeToken{.id = id, .begin = begin, .end = stop});
      continue;
    }
    for (std::uint32_t k = begin; k < stop; ++k) {
      sink(BpeToken{.id = bytes_[static_cast<unsigned char>(text[k])],
                    .begin = begin,
                    .end = stop,
                    .byte = static_cast<std::int32_t>(k - begin)});
    }
  }
  segment.clear();
}

template <class Sink>
void Bpe::encode(std::string_view normalized, bool special, Sink&& sink) const {
  std::vector<Symbol> segment;  // characters that merges may join
  segment.reserve(kScanLimit);
  std::size_t last_class = 0;
  for (std::size_t at = 0; at < normalized.size();) {
    if (const auto match = matcher_.longest(normalized, at, special); match.id >= 0) {
      flush(segment, normalized, at, sink);
      sink(BpeToken{.id = match.id,
                    .begin = static_cast<std::uint32_t>(at),
                    .end = static_cast<std::uint32_t>(at + match.bytes)});
      at += match.bytes;
      continue;
    }
    const Character next = character_at(normalized, at);
    if (!segment.empty() && !joins_[last_class][next.character_class]) {
      flush(segment, normalized, at, sink);
    }
    segment.push_back(
        {.index = next.index, .begin = static_cast<std::uint32_t>(at), .with_next = {}});
    last_class = next.character_class;
    at += next.bytes;
  }
  flush(segment, normalized, normalized.size(), sink);
}

}  // namespace needle
