// Whether a value stands in the query: strings as a span of it, numbers in digits or in words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/decode/call_spans.h"

namespace needle {

// The spans of one query as an automaton over characters: every path from start() to a state that
// may end spells a span of whole words, in one letter case from its begin to its end: as the query
// writes it, all small, a capital for each word or for the first, or words of up to 4 letters in
// capitals ("lax" gives LAX). So the rest of a word follows from its beginning in most places.
// Known letters: ASCII, Latin-1, Greek, Cyrillic. How wide a gap is does not matter; quotes around
// a span are no part of it. Between two characters of which one is not ASCII every place is a word
// boundary, so that languages without spaces work.
// Immutable: safe from several threads. Memory is linear in the query.
class QuerySpans {
 public:
  // Characters of the query read so far end before these, ascending; the high bits tell in which
  // letter cases they may have been meant.
  using State = std::vector<std::uint32_t>;
  using StateView = std::span<const std::uint32_t>;

  explicit QuerySpans(std::string_view query);  // UTF-8; broken bytes match U+FFFD

  State start() const;
  // Where `code_point` leads; empty: no span goes on like this.
  State advance(StateView state, std::uint32_t code_point) const;
  void advance(StateView state, std::uint32_t code_point, State& next) const;  // into `next`
  bool may_end(StateView state) const;
  // Characters to the nearest place where a span may end; 0 if it may end here. From every state
  // that start() and advance() give there is one, unless it is empty.
  std::size_t shortest_end(StateView state) const;

  // JSON bytes to the nearest place where a span may end, at least.
  std::int32_t bytes_to_end(StateView state) const;
  // The same behind any character of first..last (a gap is one space there); -1: none may follow.
  std::int32_t bytes_behind(StateView state, std::uint32_t first, std::uint32_t last) const;
  // All characters that may follow, some more than once; into `next`.
  void next_characters(StateView state, std::vector<std::uint32_t>& next) const;

  // The first place where `text` (UTF-8) stands, in any letter case, as bytes of the query; nothing
  // if it does not.
  std::optional<TextRange> find(std::string_view text) const;

  bool empty() const { return starts_.empty(); }  // the query has no word

 private:
  struct Character {
    std::uint32_t written = 0, folded = 0;
    std::size_t begin = 0, end = 0;  // bytes of the query
    bool begins_word = false;
    bool in_short_word = false;
  };
  std::size_t place(std::uint32_t element) const;
  template <typename Visit>
  void for_each_way(std::uint32_t element, Visit visit) const;
  std::vector<Character> characters_;
  State starts_;
  std::vector<bool> ends_;              // by number of characters before
  std::vector<std::size_t> to_an_end_;  // characters to the next end
  std::vector<std::int32_t> bytes_to_an_end_;
  std::size_t last_end_ = 0;  // characters before the last place where a span may end
};

// A number of the query, in digits ("2.5", "-3") or English words ("twenty five", "two hundred and
// six").
struct QueryNumber {
  double value = 0;
  TextRange range;
};
std::vector<QueryNumber> numbers_of(std::string_view query);

// Bytes of the query that an argument's value comes from: a string as by QuerySpans, a number as by
// numbers_of; nothing for other kinds and for what does not stand there.
std::optional<TextRange> find_in_query(std::string_view query, const JsonValue& value);

// A string parameter whose values have no form of their own (no enum, const, format or pattern):
// such values are usually words of the query.
bool is_groundable(const JsonValue& schema);

}  // namespace needle
