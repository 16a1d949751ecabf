// A set of token ids, a bit each: which tokens may follow.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "needle/text/special_tokens.h"

namespace needle {

// Over the ids 0 .. vocab_size - 1. Sized once; nothing but the constructor and copies allocate.
class TokenSet {
 public:
  TokenSet() = default;
  explicit TokenSet(std::int64_t vocab_size)
      : vocab_size_(vocab_size), words_(static_cast<std::size_t>((vocab_size + 63) / 64)) {}

  std::int64_t vocab_size() const { return vocab_size_; }
  bool contains(TokenId id) const { return (word_of(id) >> (id % 64) & 1) != 0; }
  void insert(TokenId id) { words_[index_of(id)] |= std::uint64_t{1} << (id % 64); }
  void erase(TokenId id) { words_[index_of(id)] &= ~(std::uint64_t{1} << (id % 64)); }
  void clear() { std::ranges::fill(words_, std::uint64_t{0}); }

  std::int64_t count() const {
    std::int64_t total = 0;
    for (const std::uint64_t word : words_) {
      total += std::popcount(word);
    }
    return total;
  }

  // visit(id) for every member, in ascending order.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      for (std::uint64_t word = words_[i]; word != 0; word &= word - 1) {
        visit(static_cast<TokenId>(i * 64 + static_cast<std::size_t>(std::countr_zero(word))));
      }
    }
  }

  // 64 ids a word, the lowest id in the lowest bit; bits past the vocabulary are 0.
  std::span<std::uint64_t> words() { return words_; }
  std::span<const std::uint64_t> words() const { return words_; }

  friend bool operator==(const TokenSet&, const TokenSet&) = default;

 private:
  static std::size_t index_of(TokenId id) { return static_cast<std::size_t>(id) / 64; }
  std::uint64_t word_of(TokenId id) const { return words_[index_of(id)]; }

  std::int64_t vocab_size_ = 0;
  std::vector<std::uint64_t> words_;
};

}  // namespace needle
