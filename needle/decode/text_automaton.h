// Deterministic automata over the code points of a text: what a string value may hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

inline constexpr std::uint32_t kLastCodePoint = 0x10FFFF;

// Sorted, disjoint, closed ranges of code points; surrogates are never among them.
class CodePoints {
 public:
  struct Range {
    std::uint32_t first = 0, last = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };

  CodePoints() = default;
  CodePoints(std::uint32_t first, std::uint32_t last) { add(first, last); }
  static CodePoints all() { return {0, kLastCodePoint}; }

  void add(std::uint32_t first, std::uint32_t last);
  void add(const CodePoints& other);
  CodePoints complement() const;
  bool contains(std::uint32_t code_point) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  std::vector<Range> ranges_;
};

// Every state leads to an end: dead ones are removed. State 0 is the start. Immutable.
class TextAutomaton {
 public:
  struct Edge {
    std::uint32_t first = 0, last = 0;
    std::int32_t to = 0;
  };
  struct State {
    std::vector<Edge> edges;  // ascending, disjoint
    bool may_end = false;
    std::int32_t bytes_to_end = 0;  // of JSON text, at least; found by the constructor
  };
  // An automaton with more states is refused: time and memory stay bounded whatever a schema says.
  static constexpr std::size_t kMostStates = 4096;

  static TextAutomaton anything();

  // `states` may hold dead ends. Nothing if no text at all is accepted.
  static std::optional<TextAutomaton> from_states(std::vector<State> states);

  // Texts in both; in `this` and with min..max code points (max < 0: no limit). Nothing if there is
  // no such text; throws Error if that takes more than kMostStates.
  std::optional<TextAutomaton> intersect(const TextAutomaton& other) const;
  std::optional<TextAutomaton> with_length(std::int64_t min, std::int64_t max) const;

  static constexpr std::int32_t kStart = 0;
  std::int32_t advance(std::int32_t state, std::uint32_t code_point) const;  // -1: no way
  bool may_end(std::int32_t state) const { return at(state).may_end; }
  std::int32_t bytes_to_end(std::int32_t state) const { return at(state).bytes_to_end; }
  std::int32_t most_bytes_to_end() const { return most_bytes_to_end_; }  // from any state
  // The fewest bytes to an end behind any code point of first..last; -1 if none of them may follow.
  std::int32_t bytes_behind(std::int32_t state, std::uint32_t first, std::uint32_t last) const;

  bool accepts(std::string_view text) const;  // UTF-8
  std::size_t size() const { return states_.size(); }
  const State& at(std::int32_t state) const { return states_[static_cast<std::size_t>(state)]; }

 private:
  std::vector<State> states_;
  std::int32_t most_bytes_to_end_ = 0;
};

// Bytes of JSON text that spell the cheapest code point of first..last: 1 for printable ASCII, 2
// for an escape or two bytes of UTF-8, 6 for \u00XX.
std::int32_t fewest_json_bytes(std::uint32_t first, std::uint32_t last);

}  // namespace needle
