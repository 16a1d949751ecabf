// What a grammar remembers of its tokens, in room made once: remembering never allocates, and when
// the room is full everything is forgotten. Safe from several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "needle/decode/token_set.h"
#include "needle/text/special_tokens.h"

namespace needle {

// Tokens by a text.
class KeptTokens {
 public:
  KeptTokens();
  // False: nothing is kept under `text`, and `ids` is as it was.
  bool find(std::string_view text, std::vector<TokenId>& ids) const;
  void keep(std::string_view text, const std::vector<TokenId>& ids);

 private:
  struct Entry {
    std::uint32_t text_begin = 0, text_size = 0;  // of text_; no size: free
    std::uint32_t ids_begin = 0, ids_size = 0;    // of ids_
  };
  std::size_t slot_of(std::string_view text) const;

  mutable std::mutex mutex_;
  std::vector<Entry> slots_;  // a hash table, at most half full
  std::size_t count_ = 0;
  std::vector<char> text_;
  std::vector<TokenId> ids_;
};

// Sets by a number.
class KeptSets {
 public:
  // Numbers below `numbers`, sets over `vocab_size` tokens. Called once, before all else.
  void make_room(std::size_t numbers, std::int64_t vocab_size);
  // False: nothing is kept under `number`, and `set` is as it was.
  bool find(std::size_t number, TokenSet& set) const;
  void keep(std::size_t number, const TokenSet& set);

 private:
  static constexpr std::size_t kMostSets = 1024;  // a kilobyte each, with 8192 tokens

  mutable std::mutex mutex_;
  std::vector<std::int32_t> place_;  // of each number's set; -1: none
  std::size_t room_ = 0;             // sets
  std::size_t count_ = 0;
  std::size_t words_of_set_ = 0;
  std::unique_ptr<std::uint64_t[]> words_;  // not touched before it is used
};

}  // namespace needle
