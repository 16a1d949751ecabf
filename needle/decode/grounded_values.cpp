#include "needle/decode/grounded_values.h"

#include <algorithm>
#include <cmath>

namespace needle {
namespace {

// As JSON writes it, integers without a point; empty if it is out of a grammar's range.
std::string number_text(double value) {
  constexpr double kMost = 1e15;
  if (!(std::abs(value) < kMost)) {
    return "";
  }
  return std::trunc(value) == value ? std::to_string(static_cast<std::int64_t>(value))
                                    : write_compact(JsonValue::number(value));
}

}  // namespace

GroundedValues::GroundedValues(const Grammar& grammar, std::string_view query) : spans_(query) {
  states_.push_back(spans_.start());
  numbers_of_states_[states_.front()] = kStart;
  most_tokens_ = has_spans() ? spans_.bytes_to_end(spans_.start()) : 0;
  const std::vector<QueryNumber> found = numbers_of(query);
  for (std::int32_t node = 0; node < grammar.number_count() && !found.empty(); ++node) {
    if (!grammar.number(node).grounded) {
      continue;
    }
    Grammar::Literals literals;
    for (const QueryNumber& number : found) {
      std::string text = number_text(number.value);
      if (grammar.number(node).automaton.accepts(text)) {
        literals.texts.push_back(std::move(text));
      }
    }
    std::ranges::sort(literals.texts);
    literals.texts.erase(std::unique(literals.texts.begin(), literals.texts.end()),
                         literals.texts.end());
    for (const std::string& text : literals.texts) {
      literals.tokens.push_back(grammar.trie().fewest_tokens(text));
      most_tokens_ = std::max(most_tokens_, literals.tokens.back().front());
    }
    if (!literals.texts.empty()) {
      numbers_.emplace(node, std::move(literals));
    }
  }
}

std::int32_t GroundedValues::advance(std::int32_t state, std::uint32_t code_point) {
  if (code_point != ' ' && (code_point < ' ' || code_point == 0xA0)) {
    return -1;  // a gap is written as one space
  }
  QuerySpans::State next = spans_.advance(at(state), code_point);
  if (next.empty()) {
    return -1;
  }
  const auto [found, fresh] =
      numbers_of_states_.try_emplace(std::move(next), static_cast<std::int32_t>(states_.size()));
  if (fresh) {
    states_.push_back(found->first);
  }
  return found->second;
}

const Grammar::Literals* GroundedValues::numbers(std::int32_t node) const {
  const auto found = numbers_.find(node);
  return found == numbers_.end() ? nullptr : &found->second;
}

}  // namespace needle
