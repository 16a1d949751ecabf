// Byte pair encoding as SentencePiece does it: of all neighbours whose joined text is a piece, join
// those of the highest score, the leftmost first, until none is left; user-defined symbols are cut
// out before, characters without a piece become their bytes.
// Source: T. Kudo and J. Richardson, "SentencePiece", 2018.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "needle/text/special_tokens.h"
#include "needle/text/vocabulary.h"

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
  // Keep the vocabulary alive.
  explicit SymbolMatcher(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}

  struct Match {
    TokenId id = -1;  // -1: none
    std::size_t bytes = 0;
  };
  // Without `special`, <tool_call> and <tools> do not match.
  Match longest(std::string_view text, std::size_t position, bool special) const noexcept;
  bool any_has_space() const noexcept { return vocabulary_->head->symbols_have_space != 0; }

 private:
  const Vocabulary* vocabulary_;
};

// Encodes with one vocabulary. Immutable: safe to use from several threads.
class Bpe {
 public:
  // Keep the vocabulary alive.
  explicit Bpe(const Vocabulary& vocabulary) : vocabulary_(&vocabulary), matcher_(vocabulary) {}

  // What encode() works in: kept by who encodes often, so that it allocates once.
  class Workspace;

  // `normalized` is valid UTF-8 of less than 4 GiB. Time grows with n log n at worst. Calls
  // sink(BpeToken) for each token.
  template <class Sink>
  void encode(std::string_view normalized, bool special, Workspace& work, Sink&& sink) const;

  const SymbolMatcher& symbols() const noexcept { return matcher_; }

 private:
  static constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();
  // Up to here the best pair is looked for by going through all: faster than a heap.
  static constexpr std::size_t kScanLimit = 48;

  struct Merge {
    SymbolIndex merged = kUnknownSymbol;
    std::uint32_t rank = kNoMerge;  // 0 is joined first; equal scores have equal ranks
  };
  struct Symbol {
    SymbolIndex index = kUnknownSymbol;
    std::uint32_t begin = 0;
    Merge with_next;
  };
  struct Character {
    SymbolIndex index = kUnknownSymbol;
    std::size_t bytes = 1;
    std::size_t character_class = 0;
  };

  Character character_at(std::string_view text, std::size_t position) const noexcept;
  Merge merge_of(SymbolIndex left, SymbolIndex right) const noexcept;
  // A pair to be joined, best first in a heap.
  struct Pair {
    std::uint32_t rank;
    std::uint32_t left;  // position in the segment
    SymbolIndex merged;
    bool operator>(const Pair& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  // Joins the segment's symbols in place; it shrinks.
  void merge(Workspace& work) const;
  void merge_with_heap(Workspace& work) const;
  template <class Sink>
  void flush(Workspace& work, std::string_view text, std::size_t end, Sink&& sink) const;

  const Vocabulary* vocabulary_;
  SymbolMatcher matcher_;
};

class Bpe::Workspace {
 public:
  // Texts of up to `characters` allocate nothing.
  explicit Workspace(std::size_t characters = kScanLimit) {
    segment_.reserve(characters);
    if (characters > kScanLimit) {
      pairs_.reserve(3 * characters);  // at first one a symbol, then two a joining
      next_.reserve(characters);
      previous_.reserve(characters);
      joined_.reserve(characters);
    }
  }

 private:
  friend class Bpe;
  std::vector<Symbol> segment_;  // characters that merges may join
  // Of merge_with_heap.
  std::vector<Pair> pairs_;
  std::vector<std::uint32_t> next_;  // neighbours that are left; the segment's size: none
  std::vector<std::uint32_t> previous_;
  std::vector<bool> joined_;  // into its left neighbour
};

template <class Sink>
void Bpe::flush(Workspace& work, std::string_view text, std::size_t end, Sink&& sink) const {
  std::vector<Symbol>& segment = work.segment_;
  merge(work);
  for (std::size_t i = 0; i < segment.size(); ++i) {
    const std::uint32_t begin = segment[i].begin;
    const auto stop =
        i + 1 < segment.size() ? segment[i + 1].begin : static_cast<std::uint32_t>(end);
    const TokenId id = segment[i].index == kUnknownSymbol ? -1 : vocabulary_->ids[segment[i].index];
    if (id >= 0) {
      sink(BpeToken{.id = id, .begin = begin, .end = stop});
      continue;
    }
    for (std::uint32_t k = begin; k < stop; ++k) {
      sink(BpeToken{.id = vocabulary_->head->bytes[static_cast<unsigned char>(text[k])],
                    .begin = begin,
                    .end = stop,
                    .byte = static_cast<std::int32_t>(k - begin)});
    }
  }
  segment.clear();
}

template <class Sink>
void Bpe::encode(std::string_view normalized, bool special, Workspace& work, Sink&& sink) const {
  std::vector<Symbol>& segment = work.segment_;
  segment.clear();
  std::size_t last_class = 0;
  for (std::size_t at = 0; at < normalized.size();) {
    if (const auto match = matcher_.longest(normalized, at, special); match.id >= 0) {
      flush(work, normalized, at, sink);
      sink(BpeToken{.id = match.id,
                    .begin = static_cast<std::uint32_t>(at),
                    .end = static_cast<std::uint32_t>(at + match.bytes)});
      at += match.bytes;
      continue;
    }
    const Character next = character_at(normalized, at);
    if (!segment.empty() && vocabulary_->head->joins[last_class][next.character_class] == 0) {
      flush(work, normalized, at, sink);
    }
    segment.push_back(
        {.index = next.index, .begin = static_cast<std::uint32_t>(at), .with_next = {}});
    last_class = next.character_class;
    at += next.bytes;
  }
  flush(work, normalized, normalized.size(), sink);
}

}  // namespace needle
