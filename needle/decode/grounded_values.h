// What grounded strings and numbers of one request may be: the query's spans and numbers, in the
// form that a grammar machine follows.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "needle/decode/grammar.h"
#include "needle/decode/grounding.h"

namespace needle {

// States of the query's spans get numbers as they are met, in room made for the usual number of
// them. Not thread-safe.
class GroundedValues {
 public:
  GroundedValues(const Grammar& grammar, std::string_view query);

  // Tokens that a grounded value may take beyond what its schema alone asks for: of the shortest
  // span, or of the dearest of the numbers.
  std::int32_t most_tokens() const { return most_tokens_; }

  // Without words nothing can be grounded: strings are free then.
  bool has_spans() const { return !spans_.empty(); }
  static constexpr std::int32_t kStart = 0;
  std::int32_t advance(std::int32_t state, std::uint32_t code_point);  // -1: no way
  bool may_end(std::int32_t state) const { return spans_.may_end(at(state)); }
  std::int32_t bytes_to_end(std::int32_t state) const { return spans_.bytes_to_end(at(state)); }
  std::int32_t bytes_behind(std::int32_t state, std::uint32_t first, std::uint32_t last) const {
    return spans_.bytes_behind(at(state), first, last);
  }
  // Valid until the next call.
  std::span<const std::uint32_t> next_characters(std::int32_t state) {
    spans_.next_characters(at(state), next_);
    return next_;
  }

  // The query's numbers that fit a number node; nullptr: none does, so that the number is free.
  const Grammar::Literals* numbers(std::int32_t node) const;

 private:
  // Of elements_.
  struct Range {
    std::size_t begin = 0, size = 0;
  };
  QuerySpans::StateView at(std::int32_t state) const {
    const Range range = states_[static_cast<std::size_t>(state)];
    return std::span(elements_).subspan(range.begin, range.size);
  }
  std::size_t slot_of(QuerySpans::StateView state) const;
  std::int32_t number_of(QuerySpans::StateView state);
  void grow_slots(std::size_t count);

  QuerySpans spans_;
  std::vector<std::uint32_t> elements_;  // of all states, one after the other
  std::vector<Range> states_;
  std::vector<std::int32_t> slots_;  // a hash table of states, at most half full; -1: free
  std::vector<std::uint32_t> next_;
  std::map<std::int32_t, Grammar::Literals> numbers_;  // by number node
  std::int32_t most_tokens_ = 0;
};

}  // namespace needle
