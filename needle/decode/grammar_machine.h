// Follows an answer through a grammar, byte by byte: a pushdown machine whose stacks share their
// lower parts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "needle/decode/grammar.h"
#include "needle/decode/grounded_values.h"
#include "needle/decode/string_reader.h"

namespace needle {

// Up to two bytes that may follow, enough to know whether there is a choice.
struct NextByte {
  int count = 0;  // 2: two or more
  std::uint8_t byte = 0;
  void add(std::uint8_t next) {
    count = count == 0 || byte == next ? 1 : 2;
    byte = next;
  }
  void add_several() { count = 2; }
};

// Not thread-safe. A copy is independent but for the grounded states' numbers, which it shares.
class GrammarMachine {
 public:
  // The stacks that an answer so far may be on, by their tops; kDone: the answer is complete.
  // Empty: it fits nothing.
  using Threads = std::vector<std::int32_t>;
  static constexpr std::int32_t kDone = -1;

  // `grounded` may be null: nothing is grounded.
  GrammarMachine(std::shared_ptr<const Grammar> grammar, const CallLimits& limits,
                 std::shared_ptr<GroundedValues> grounded);

  const Grammar& grammar() const { return *grammar_; }

  Threads start();
  // Threads of `from` behind `byte`, into `to` (which is cleared).
  void step(const Threads& from, std::uint8_t byte, Threads& to);
  bool may_end(const Threads& threads) const;  // the answer may be over here
  // Tokens to the nearest end, at least.
  std::int64_t tokens_to_end(const Threads& threads) const;
  // What may follow; never less than what step() takes.
  NextByte next_byte(const Threads& threads);

  // Stacks made since mark() can be thrown away again.
  using Mark = std::pair<std::size_t, std::size_t>;
  Mark mark() const { return {frames_.size(), used_.size()}; }
  void release(const Mark& mark) {
    frames_.resize(mark.first);
    used_.resize(mark.second);
  }

  // Between two characters of a string: which automaton, its state, how many more characters may
  // come (-1: any number) and the tokens to the nearest end. Nothing anywhere else.
  struct StringPlace {
    std::int32_t automaton = 0, state = 0;
    std::int64_t characters_left = -1;
    std::int64_t most_tokens_to_end = 0;  // from anywhere inside the string with one token more
  };
  std::optional<StringPlace> string_place(const Threads& threads) const;

 private:
  enum class Kind : std::uint8_t { kLiterals, kNumber, kString, kArray, kObject, kCalls, kSpace };
  // Phases of arrays, objects and calls; others use kOpen and kInside.
  enum class Phase : std::uint8_t {
    kOpen,        // the bracket or quote is next
    kFirst,       // behind the opening bracket
    kInside,      // of a literal, a string, a key, a call's head
    kValue,       // a key's or head's value is next
    kAfterValue,  // a value is whole
    kAfterCall,   // a call's brace is closed
    kNext,        // behind a comma
    kExtraKey,    // inside a key that is not declared
    kColon,       // behind that key
  };
  struct Frame {
    std::int32_t parent = kDone;
    std::int32_t node = 0;  // literals: ~n are the query's numbers for number node n
    Kind kind = Kind::kLiterals;
    Phase phase = Phase::kOpen;
    std::int32_t low = 0, high = 0, depth = 0;  // texts that begin with the bytes so far
    std::int32_t state = 0;                     // of a string's automaton
    std::int64_t count = 0;                     // characters, items, calls
    std::int32_t used = -1;                     // list of keys or items that came
    std::int64_t tokens_behind = 0;             // cost to the end, once this value is whole
    std::uint64_t hash = 0;                     // of an extra key so far
    StringReader reader;
    NumberAutomaton::State number;
    bool operator==(const Frame&) const = default;
  };
  // A list cell: a declared key or literal (by index), or an extra key (by hash).
  struct Used {
    std::int32_t next = -1;
    std::int32_t index = -1;
    std::uint64_t hash = 0;
  };

  const Frame& frame(std::int32_t index) const { return frames_[static_cast<std::size_t>(index)]; }
  std::int32_t push(const Frame& frame);
  void add(const Frame& frame, Threads& to);
  static void leave(std::int32_t parent, Threads& to);
  Frame begin(const Grammar::Node& node) const;
  Frame root_calls() const;
  void enter(const Grammar::Value& value, const Frame& parent, std::uint8_t byte, Threads& to);

  void step_thread(std::int32_t thread, std::uint8_t byte, Threads& to);
  void step_frame(const Frame& f, std::uint8_t byte, Threads& to);
  void step_root(std::uint8_t byte, Threads& to);
  void step_literals(const Frame& f, std::uint8_t byte, Threads& to);
  void step_string(const Frame& f, std::uint8_t byte, Threads& to);
  void step_array(const Frame& f, std::uint8_t byte, Threads& to);
  void step_object(const Frame& f, std::uint8_t byte, Threads& to);
  void step_key(const Frame& f, std::uint8_t byte, Threads& to);
  void step_extra_key(const Frame& f, std::uint8_t byte, Threads& to);
  void step_calls(const Frame& f, std::uint8_t byte, Threads& to);
  void step_head(const Frame& f, std::uint8_t byte, Threads& to);

  const Grammar::Literals& literals(const Frame& f) const;
  bool is_used(std::int32_t list, std::int32_t index) const;
  bool is_used(std::int32_t list, std::uint64_t hash) const;
  std::int32_t use(std::int32_t list, std::int32_t index, std::uint64_t hash);
  bool any_unused(const Frame& f) const;  // of [low, high)
  bool is_unique_item(const Frame& f) const;
  std::int32_t whole_literal(const Frame& f) const;  // that the bytes so far spell; -1: none
  std::int32_t parent_of_literal(const Frame& f, std::int32_t literal);
  bool all_required(const Frame& f) const;
  bool may_add_key(const Frame& f) const;

  bool is_grounded(const Frame& f) const;  // of a string
  std::int32_t string_advance(const Frame& f, std::uint32_t code_point) const;
  bool string_may_end(const Frame& f) const;
  // The fewest bytes to the end of a string's text, `characters` more asked for apart; -1: no end.
  std::int32_t bytes_inside(const Frame& f) const;

  // Tokens from here to the end of this value.
  // Costs (Grammar::kGroundedValue); in_tokens() makes tokens of one.
  std::int64_t in_tokens(std::int64_t cost) const;
  std::int64_t tokens(const Frame& f) const;
  std::int64_t tokens_of_literals(const Frame& f) const;
  std::int64_t tokens_of_string(const Frame& f) const;
  std::int64_t tokens_of_array(const Frame& f) const;
  std::int64_t tokens_of_object(const Frame& f) const;
  std::int64_t tokens_of_required(const Frame& f, bool behind_value) const;
  std::int64_t tokens_of_key(const Frame& f) const;
  std::int64_t tokens_of_extra_key(const Frame& f) const;
  std::int64_t tokens_of_calls(const Frame& f) const;
  std::int64_t tokens_of_more_calls(std::int64_t count) const;

  void next_of(std::int32_t thread, NextByte& next);
  void next_of_literals(const Frame& f, NextByte& next);
  void next_of_string(const Frame& f, NextByte& next) const;
  void next_of_value(const Grammar::Value& value, const Frame& parent, NextByte& next);
  void next_of_array(const Frame& f, NextByte& next);
  void next_of_object(const Frame& f, NextByte& next);
  void next_of_calls(const Frame& f, NextByte& next);

  std::shared_ptr<const Grammar> grammar_;
  CallLimits limits_;
  std::shared_ptr<GroundedValues> grounded_;
  std::int32_t low_ = 0, high_ = 0;   // heads of the tools that may be called
  std::int64_t call_tokens_ = 0;      // cost of the cheapest call
  std::int64_t grounded_tokens_ = 0;  // that the query may ask of a grounded value, besides
  std::vector<Frame> frames_;
  std::vector<Used> used_;
};

}  // namespace needle
