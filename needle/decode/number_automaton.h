// The numbers of a schema as an automaton over their characters, by arithmetic instead of tables.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

// What a schema says about a number. Bounds and divisors are JSON number texts.
struct NumberSchema {
  bool integer = false;
  struct Bound {
    std::string text;
    bool exclusive = false;
  };
  std::vector<Bound> minima, maxima;
  std::vector<std::string> multiples_of;
};

// Accepts numbers without an exponent, leading zeros or a minus before 0: integers of at most 18
// digits; others of at most 15 significant digits and 12 decimals, so that no parser rounds one
// across a bound. A number without bounds may have an exponent of two digits. Immutable.
class NumberAutomaton {
 public:
  // The characters read so far: their digits as one integer, and where they stand.
  struct State {
    enum class Phase : std::uint8_t {
      kStart,
      kMinus,
      kInteger,
      kPoint,
      kFraction,
      kExponent,      // behind e
      kExponentSign,  // behind e+ or e-
      kExponentDigit,
      kExponentEnd
    };
    std::uint64_t digits = 0;
    Phase phase = Phase::kStart;
    bool negative = false;
    std::int8_t decimals = 0;
    std::int8_t length = 0;  // of `digits` without leading zeros
    friend bool operator==(const State&, const State&) = default;
  };

  // Nothing if no number fits. Throws Error if a bound or a divisor is not exact within 15 decimals
  // or 10^15 (for divisors).
  static std::optional<NumberAutomaton> make(const NumberSchema& schema);

  State start() const { return {}; }
  // Nothing: no number that fits goes on like this.
  std::optional<State> advance(const State& state, char character) const;
  bool may_end(const State& state) const;
  // Characters to the shortest end; 0 if it may end here.
  std::int32_t shortest_end(const State& state) const;

  bool accepts(std::string_view text) const;
  // All integers that fit, if they are at most `most`; nothing if they are more or not integers.
  std::optional<std::vector<std::string>> listed(std::int64_t most) const;

 private:
  using Wide = __int128;  // counts units of 10^-decimals_

  // The numbers that begin with the state's characters and go on with `more_integer` digits and
  // then up to `more_decimals` decimals.
  bool any(const State& state, int more_integer, int more_decimals) const;
  bool can_go_on(const State& state) const;

  bool integer_ = false;
  bool exponents_ = false;
  int decimals_ = 0;
  int most_digits_ = 0;
  Wide low_ = 0, high_ = 0;  // inclusive
  Wide step_ = 1;
};

}  // namespace needle
