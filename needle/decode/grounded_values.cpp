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
  constexpr std::size_t kUsualStates = 4096;
  states_.reserve(kUsualStates);
  elements_.reserve(4 * kUsualStates);
  next_.reserve(query.size() + 1);
  grow_slots(2 * kUsualStates);
  number_of(spans_.start());  // kStart
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
  spans_.advance(at(state), code_point, next_);
  return next_.empty() ? -1 : number_of(next_);
}

// Where `state` is, or the free one where it belongs.
std::size_t GroundedValues::slot_of(QuerySpans::StateView state) const {
  std::uint64_t hash = kTextHash;
  for (const std::uint32_t element : state) {
    hash = hash_code_point(hash, element);
  }
  std::size_t slot = (hash ^ hash >> 32) % slots_.size();
  while (slots_[slot] >= 0 && !std::ranges::equal(at(slots_[slot]), state)) {
    slot = (slot + 1) % slots_.size();
  }
  return slot;
}

std::int32_t GroundedValues::number_of(QuerySpans::StateView state) {
  const std::size_t slot = slot_of(state);
  if (slots_[slot] >= 0) {
    return slots_[slot];
  }
  const auto number = static_cast<std::int32_t>(states_.size());
  states_.push_back({.begin = elements_.size(), .size = state.size()});
  elements_.insert(elements_.end(), state.begin(), state.end());
  slots_[slot] = number;
  if (2 * states_.size() > slots_.size()) {
    grow_slots(2 * slots_.size());
  }
  return number;
}

void GroundedValues::grow_slots(std::size_t count) {
  slots_.assign(count, -1);
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const auto number = static_cast<std::int32_t>(i);
    slots_[slot_of(at(number))] = number;
  }
}

const Grammar::Literals* GroundedValues::numbers(std::int32_t node) const {
  const auto found = numbers_.find(node);
  return found == numbers_.end() ? nullptr : &found->second;
}

}  // namespace needle
