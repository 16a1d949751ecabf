// Regular expressions of JSON Schema's `pattern` as automata: the subset without look-around.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "needle/decode/text_automaton.h"

namespace needle {

// The problem's message where no text fits.
inline constexpr std::string_view kNoText = "no text fits it";

// What stands in the way of enforcing a pattern; the message begins in lower case and names the
// place.
struct PatternProblem {
  std::string message;
};

// Texts in which `pattern` is found somewhere, as JSON Schema searches (ECMA 262 without flags):
// literals, ., [...], \d \w \s and their complements, \t \n \r \f \v \xHH \uHHHH, ( ), (?: ), |, *
// + ? {m} {m,} {m,n} also lazy, ^ and $ anywhere. \d, \w and \s are ASCII. Look-around, back
// references, \b and \p are problems, and so is a pattern that needs more than
// TextAutomaton::kMostStates states or that no text fits. Time and memory are bounded.
struct CompiledPattern {
  std::optional<TextAutomaton> automaton;
  PatternProblem problem;  // if there is no automaton
};
CompiledPattern compile_pattern(std::string_view pattern);  // UTF-8

// The pattern of a JSON Schema `format`: date, time, date-time, duration, email, hostname, ipv4,
// ipv6, uuid, uri. Dates are real ones (leap years), times need an offset, hosts are ASCII. Nothing
// for other names.
std::optional<std::string> pattern_of_format(std::string_view format);

}  // namespace needle
