#include "needle/decode/number_automaton.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

using Wide = __int128;

constexpr int kDecimals = 12;
constexpr int kMostDecimals = 15;
constexpr int kIntegerDigits = 18;
constexpr int kSignificantDigits = 15;

Wide power_of_ten(int exponent) {
  Wide power = 1;
  for (int i = 0; i < exponent; ++i) {
    power *= 10;
  }
  return power;
}

// digits * 10^exponent.
struct Decimal {
  bool negative = false;
  std::string digits;
  int exponent = 0;
};

Decimal parse_decimal(std::string_view text) {
  Decimal decimal;
  decimal.negative = text.starts_with('-');
  int point = 0;
  bool behind_point = false;
  for (std::size_t i = decimal.negative ? 1 : 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '.') {
      behind_point = true;
    } else if (c == 'e' || c == 'E') {
      const std::size_t begin = i + (text[i + 1] == '+' ? 2 : 1);
      std::from_chars(text.data() + begin, text.data() + text.size(), decimal.exponent);
      break;
    } else if (c < '0' || c > '9') {
      throw Error(format("{} is no finite number", text));
    } else {
      decimal.digits += c;
      point += behind_point ? 1 : 0;
    }
  }
  decimal.exponent -= point;
  while (decimal.digits.size() > 1 && decimal.digits.ends_with('0')) {
    decimal.digits.pop_back();
    ++decimal.exponent;
  }
  decimal.digits.erase(0,
                       std::min(decimal.digits.find_first_not_of('0'), decimal.digits.size() - 1));
  return decimal;
}

int decimals_of(std::string_view text) {
  const Decimal decimal = parse_decimal(text);
  return decimal.digits == "0" ? 0 : std::max(0, -decimal.exponent);
}

// In units of 10^-decimals, rounded towards plus or minus infinity; `limit` at most.
Wide in_units(std::string_view text, int decimals, bool up, Wide limit) {
  const Decimal decimal = parse_decimal(text);
  const int shift = decimal.exponent + decimals;
  const int size = static_cast<int>(decimal.digits.size());
  if (decimal.digits != "0" && size + shift > 36) {
    return decimal.negative ? -limit : limit;
  }
  Wide value = 0;
  bool rest = false;
  for (int i = 0; i < size; ++i) {
    const int digit = decimal.digits[static_cast<std::size_t>(i)] - '0';
    if (i < size + std::min(shift, 0)) {
      value = value * 10 + digit;
    } else {
      rest = rest || digit != 0;
    }
  }
  value *= power_of_ten(std::max(shift, 0));
  if (decimal.digits == "0") {
    value = 0;
  }
  if (rest && up != decimal.negative) {
    ++value;
  }
  value = decimal.negative ? -value : value;
  return std::clamp(value, -limit, limit);
}

Wide greatest_common_divisor(Wide a, Wide b) {
  while (b != 0) {
    a = std::exchange(b, a % b);
  }
  return a;
}

Wide least_common_multiple(Wide a, Wide b) {
  const Wide part = a / greatest_common_divisor(a, b);
  const Wide most = power_of_ten(34);
  return part > most / b ? most : part * b;
}

// A multiple of `step` in [low, high]?
bool has_multiple(Wide low, Wide high, Wide step) {
  if (low > high) {
    return false;
  }
  const Wide below = low >= 0 ? (low + step - 1) / step : -(-low / step);  // ceil(low / step)
  return below * step <= high;
}

}  // namespace

std::optional<NumberAutomaton> NumberAutomaton::make(const NumberSchema& schema) {
  NumberAutomaton automaton;
  automaton.integer_ = schema.integer;
  automaton.exponents_ = !schema.integer && schema.minima.empty() && schema.maxima.empty() &&
                         schema.multiples_of.empty();
  automaton.most_digits_ = schema.integer ? kIntegerDigits : kSignificantDigits;
  int decimals = schema.integer ? 0 : kDecimals;
  for (const std::string& divisor : schema.multiples_of) {
    decimals = std::max(decimals, decimals_of(divisor));
  }
  if (!schema.integer) {
    for (const auto* bounds : {&schema.minima, &schema.maxima}) {
      for (const NumberSchema::Bound& bound : *bounds) {
        decimals = std::max(decimals, std::min(kMostDecimals, decimals_of(bound.text)));
      }
    }
  }
  if (decimals > kMostDecimals) {
    throw Error(
        format("a divisor with {} decimals; at most {} can be enforced", decimals, kMostDecimals));
  }
  automaton.decimals_ = decimals;
  const Wide limit = power_of_ten(automaton.most_digits_ + decimals) - 1;
  automaton.low_ = -limit;
  automaton.high_ = limit;
  for (const NumberSchema::Bound& bound : schema.minima) {
    Wide low = in_units(bound.text, decimals, /*up=*/true, limit);
    low += bound.exclusive && low == in_units(bound.text, decimals, /*up=*/false, limit) ? 1 : 0;
    automaton.low_ = std::max(automaton.low_, low);
  }
  for (const NumberSchema::Bound& bound : schema.maxima) {
    Wide high = in_units(bound.text, decimals, /*up=*/false, limit);
    high -= bound.exclusive && high == in_units(bound.text, decimals, /*up=*/true, limit) ? 1 : 0;
    automaton.high_ = std::min(automaton.high_, high);
  }
  if (schema.integer) {
    automaton.step_ = power_of_ten(decimals);
  }
  for (const std::string& divisor : schema.multiples_of) {
    const Wide units =
        in_units(divisor, decimals, /*up=*/true, power_of_ten(kMostDecimals + decimals));
    if (units <= 0 || units >= power_of_ten(kMostDecimals + decimals)) {
      throw Error(
          format("a divisor of {}; it must be above 0 and below 1e{}", divisor, kMostDecimals));
    }
    automaton.step_ = least_common_multiple(automaton.step_, units);
  }
  return automaton.can_go_on(automaton.start()) ? std::optional(automaton) : std::nullopt;
}

bool NumberAutomaton::any(const State& state, int more_integer, int more_decimals) const {
  const Wide unit = power_of_ten(decimals_);
  const Wide grid = power_of_ten(decimals_ - state.decimals - more_decimals);
  Wide first = static_cast<Wide>(state.digits) * power_of_ten(more_integer);
  first *= state.decimals > 0 ? power_of_ten(decimals_ - state.decimals) : unit;
  const Wide width = state.decimals > 0 || more_integer == 0
                         ? power_of_ten(decimals_ - state.decimals)
                         : power_of_ten(more_integer) * unit;
  Wide last = first + width - grid;
  if (more_integer == 0 && more_decimals == 0) {
    last = first;
  }
  if (state.negative) {
    first = std::max<Wide>(first, 1);  // -0 is not written
    const Wide low = -last;
    last = -first;
    first = low;
  }
  return has_multiple(std::max(first, low_), std::min(last, high_),
                      least_common_multiple(step_, grid));
}

bool NumberAutomaton::may_end(const State& state) const {
  using Phase = State::Phase;
  switch (state.phase) {
    case Phase::kInteger:
    case Phase::kFraction:
      return any(state, 0, 0);
    case Phase::kExponentDigit:
    case Phase::kExponentEnd:
      return true;
    default:
      return false;
  }
}

// Whether some number that fits begins with these characters.
bool NumberAutomaton::can_go_on(const State& state) const {
  using Phase = State::Phase;
  const int decimals_left =
      integer_ ? 0 : std::min(decimals_ - state.decimals, most_digits_ - state.length);
  switch (state.phase) {
    case Phase::kStart:
    case Phase::kMinus: {
      State zero{.phase = Phase::kInteger, .negative = state.negative};
      if (can_go_on(zero)) {
        return true;
      }
      for (std::uint64_t digit = 1; digit <= 9; ++digit) {
        if (can_go_on({.digits = digit,
                       .phase = Phase::kInteger,
                       .negative = state.negative,
                       .length = 1})) {
          return true;
        }
      }
      return state.phase == Phase::kStart && can_go_on({.phase = Phase::kMinus, .negative = true});
    }
    case Phase::kInteger: {
      if (any(state, 0, decimals_left)) {
        return true;
      }
      const int digits_left = state.digits == 0 ? 0 : most_digits_ - state.length;
      for (int more = 1; more <= digits_left; ++more) {
        if (any(state, more,
                integer_ ? 0 : std::min(decimals_, most_digits_ - state.length - more))) {
          return true;
        }
      }
      return false;
    }
    case Phase::kPoint:
      return decimals_left > 0 && any(state, 0, decimals_left);
    case Phase::kFraction:
      return any(state, 0, decimals_left);
    default:
      return true;
  }
}

std::optional<NumberAutomaton::State> NumberAutomaton::advance(const State& state,
                                                               char character) const {
  using Phase = State::Phase;
  State next = state;
  const bool digit = character >= '0' && character <= '9';
  const auto append = [&] {
    next.digits = next.digits * 10 + static_cast<std::uint64_t>(character - '0');
    next.length = static_cast<std::int8_t>(next.length + (next.digits != 0 ? 1 : 0));
  };
  switch (state.phase) {
    case Phase::kStart:
      if (character == '-') {
        next.phase = Phase::kMinus;
        next.negative = true;
        break;
      }
      [[fallthrough]];
    case Phase::kMinus:
      if (!digit) {
        return std::nullopt;
      }
      append();
      next.phase = Phase::kInteger;
      break;
    case Phase::kInteger:
      if (character == '.' && !integer_) {
        next.phase = Phase::kPoint;
      } else if (character == 'e' && exponents_) {
        next.phase = Phase::kExponent;
      } else if (digit && state.digits != 0 && state.length < most_digits_) {
        append();
      } else {
        return std::nullopt;
      }
      break;
    case Phase::kPoint:
    case Phase::kFraction:
      if (character == 'e' && exponents_ && state.phase == Phase::kFraction) {
        next.phase = Phase::kExponent;
      } else if (digit && state.decimals < decimals_ && state.length < most_digits_) {
        append();
        ++next.decimals;
        next.phase = Phase::kFraction;
      } else {
        return std::nullopt;
      }
      break;
    case Phase::kExponent:
      if (!digit && character != '-' && character != '+') {
        return std::nullopt;
      }
      next.phase = digit ? Phase::kExponentDigit : Phase::kExponentSign;
      break;
    case Phase::kExponentSign:
    case Phase::kExponentDigit:
      if (!digit) {
        return std::nullopt;
      }
      next.phase =
          state.phase == Phase::kExponentSign ? Phase::kExponentDigit : Phase::kExponentEnd;
      break;
    case Phase::kExponentEnd:
      return std::nullopt;
  }
  return can_go_on(next) ? std::optional(next) : std::nullopt;
}

std::int32_t NumberAutomaton::shortest_end(const State& state) const {
  using Phase = State::Phase;
  if (may_end(state)) {
    return 0;
  }
  if (state.phase == Phase::kExponent || state.phase == Phase::kExponentSign) {
    return 1;
  }
  if (state.phase == Phase::kStart || state.phase == Phase::kMinus) {
    std::int32_t best = kIntegerDigits + kMostDecimals + 3;
    for (const char next : std::string_view("0123456789-")) {
      if (const auto behind = advance(state, next)) {
        best = std::min(best, 1 + shortest_end(*behind));
      }
    }
    return best;
  }
  // Integer digits first, then a point and decimals; the shortest total wins.
  const bool fraction = state.phase != Phase::kInteger;
  const int digits_left = fraction || state.digits == 0 ? 0 : most_digits_ - state.length;
  std::int32_t best = kIntegerDigits + kMostDecimals + 3;
  for (int more = 0; more <= digits_left && more < best; ++more) {
    if (more > 0 && any(state, more, 0)) {
      return std::min(best, more);
    }
    const int decimals =
        integer_ ? 0 : std::min(decimals_ - state.decimals, most_digits_ - state.length - more);
    for (int behind = 1; behind <= decimals; ++behind) {
      const std::int32_t total = more + behind + (fraction ? 0 : 1);
      if (total < best && any(state, more, behind)) {
        best = total;
      }
    }
  }
  return best;
}

bool NumberAutomaton::accepts(std::string_view text) const {
  std::optional<State> state = start();
  for (const char character : text) {
    state = advance(*state, character);
    if (!state) {
      return false;
    }
  }
  return may_end(*state);
}

std::optional<std::vector<std::string>> NumberAutomaton::listed(std::int64_t most) const {
  if (!integer_) {
    return std::nullopt;
  }
  const Wide low = low_ >= 0 ? (low_ + step_ - 1) / step_ : -(-low_ / step_);
  const Wide high = high_ >= 0 ? high_ / step_ : -((-high_ + step_ - 1) / step_);
  if (high - low >= most) {
    return std::nullopt;
  }
  std::vector<std::string> all;
  for (Wide i = low; i <= high; ++i) {
    all.push_back(std::to_string(static_cast<std::int64_t>(i * step_ / power_of_ten(decimals_))));
  }
  return all;
}

}  // namespace needle
