// Looking ahead: how far it is to the end, and whether there is a choice. The other half of
// grammar_machine.h.
#include <algorithm>
#include <limits>

#include "needle/decode/grammar_machine.h"

namespace needle {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max() / 4;

const Grammar::Value& item_value(const Grammar::Array& array, std::int64_t index) {
  return index < std::ssize(array.prefix) ? array.prefix[static_cast<std::size_t>(index)]
                                          : *array.items;
}

}  // namespace

std::int64_t GrammarMachine::tokens_to_end(const Threads& threads) const {
  std::int64_t fewest = kNever;
  for (const std::int32_t thread : threads) {
    fewest =
        std::min(fewest, thread == kDone ? 0 : tokens(frame(thread)) + frame(thread).tokens_behind);
  }
  return in_tokens(fewest);
}

std::int64_t GrammarMachine::in_tokens(std::int64_t cost) const {
  return cost >= kNever
             ? kNever
             : cost % Grammar::kGroundedValue + cost / Grammar::kGroundedValue * grounded_tokens_;
}

std::int64_t GrammarMachine::tokens(const Frame& f) const {
  switch (f.kind) {
    case Kind::kLiterals:
      return tokens_of_literals(f);
    case Kind::kNumber:
      return grammar_->number(f.node).automaton.shortest_end(f.number);
    case Kind::kString:
      return tokens_of_string(f);
    case Kind::kArray:
      return tokens_of_array(f);
    case Kind::kObject:
      return tokens_of_object(f);
    case Kind::kCalls:
      return tokens_of_calls(f);
    case Kind::kSpace:
      return 1 + (grammar_->calls() != nullptr ? tokens_of_calls(root_calls())
                                               : grammar_->root().tokens);
  }
  return 0;
}

std::int64_t GrammarMachine::tokens_of_literals(const Frame& f) const {
  const Grammar::Literals& all = literals(f);
  std::int64_t fewest = kNever;
  for (std::int32_t i = f.low; i < f.high; ++i) {
    if (f.used < 0 || !is_used(f.used, i)) {
      fewest = std::min<std::int64_t>(
          fewest, all.tokens[static_cast<std::size_t>(i)][static_cast<std::size_t>(f.depth)]);
    }
  }
  return fewest;
}

// A string with min_length has the automaton of all texts, so that characters cost a byte each.
std::int32_t GrammarMachine::bytes_inside(const Frame& f) const {
  const bool key = f.kind != Kind::kString;
  const bool grounded = !key && is_grounded(f);
  const TextAutomaton& automaton =
      grammar_->automaton(key ? Grammar::kAnything : grammar_->string(f.node).automaton);
  const std::int32_t state = key ? TextAutomaton::kStart : f.state;
  if (f.reader.phase == StringReader::Phase::kText) {
    return grounded ? grounded_->bytes_to_end(state) : automaton.bytes_to_end(state);
  }
  std::int32_t fewest = -1;
  for (const string_reader::Interval& interval : string_reader::reach(f.reader)) {
    if (interval.empty()) {
      continue;
    }
    const std::int32_t behind = grounded
                                    ? grounded_->bytes_behind(state, interval.first, interval.last)
                                    : automaton.bytes_behind(state, interval.first, interval.last);
    if (behind >= 0 && (fewest < 0 || interval.bytes + behind < fewest)) {
      fewest = interval.bytes + behind;
    }
  }
  return fewest;
}

std::int64_t GrammarMachine::tokens_of_string(const Frame& f) const {
  const Grammar::String& string = grammar_->string(f.node);
  const std::int64_t begun = f.reader.phase == StringReader::Phase::kText ? 0 : 1;
  const std::int64_t missing = std::max<std::int64_t>(0, string.min_length - f.count - begun);
  // What a grounded text lacks to its end makes up for a missing character: there is at most one.
  return (f.phase == Phase::kOpen ? 2 : 1) + bytes_inside(f) + (is_grounded(f) ? 0 : missing);
}

std::int64_t GrammarMachine::tokens_of_array(const Frame& f) const {
  const Grammar::Array& array = grammar_->array(f.node);
  std::int64_t total = f.phase == Phase::kOpen ? 2 : 1;
  std::int64_t least = array.min_items;
  if (f.phase == Phase::kNext) {
    least = std::max(least, f.count + 1);
  }
  std::int64_t index = f.count;
  for (; index < std::min<std::int64_t>(least, std::ssize(array.prefix)); ++index) {
    total += item_value(array, index).tokens + 1;
  }
  if (index < least) {
    total += (least - index) * (array.items->tokens + 1);
  }
  const bool comma_paid = f.phase != Phase::kAfterValue && f.count < least;
  return total - (comma_paid ? 1 : 0);
}

// The closing brace and the required keys that are missing; behind a value each needs a comma.
std::int64_t GrammarMachine::tokens_of_required(const Frame& f, bool behind_value) const {
  const Grammar::Object& object = grammar_->object(f.node);
  std::int64_t total = 1;
  bool comma = behind_value;
  for (std::size_t i = 0; i < object.required.size(); ++i) {
    if (object.required[i] && !is_used(f.used, static_cast<std::int32_t>(i))) {
      total += object.keys.tokens[i].front() + object.values[i].tokens + (comma ? 1 : 0);
      comma = true;
    }
  }
  return total;
}

std::int64_t GrammarMachine::tokens_of_object(const Frame& f) const {
  const Grammar::Object& object = grammar_->object(f.node);
  switch (f.phase) {
    case Phase::kOpen:
      return 1 + tokens_of_required(f, false);
    case Phase::kFirst:
      return tokens_of_required(f, false);
    case Phase::kNext: {
      if (!all_required(f)) {
        return tokens_of_required(f, false);
      }
      Frame begun = f;
      begun.low = 0;
      begun.high = static_cast<std::int32_t>(object.values.size());
      begun.depth = 0;
      std::int64_t fewest = tokens_of_key(begun);
      if (object.extra) {
        begun.hash = kTextHash;
        begun.reader = {};
        fewest = std::min(fewest, 1 + tokens_of_extra_key(begun));
      }
      return fewest;
    }
    case Phase::kInside:
      return tokens_of_key(f);
    case Phase::kValue:
      return (f.state >= 0 ? object.values[static_cast<std::size_t>(f.state)] : *object.extra)
                 .tokens +
             tokens_of_required(f, true);
    case Phase::kExtraKey:
      return tokens_of_extra_key(f);
    case Phase::kColon:
      return 1 + object.extra->tokens + tokens_of_required(f, true);
    default:
      return tokens_of_required(f, true);
  }
}

std::int64_t GrammarMachine::tokens_of_key(const Frame& f) const {
  const Grammar::Object& object = grammar_->object(f.node);
  const std::int64_t rest = tokens_of_required(f, true);
  std::int64_t fewest = kNever;
  for (std::int32_t i = f.low; i < f.high; ++i) {
    if (is_used(f.used, i)) {
      continue;
    }
    const auto at = static_cast<std::size_t>(i);
    const std::int64_t value = object.values[at].tokens;
    const std::int64_t paid =
        object.required[at] ? object.keys.tokens[at].front() + value + 1 : 0;  // within `rest`
    fewest = std::min(
        fewest, object.keys.tokens[at][static_cast<std::size_t>(f.depth)] + value + rest - paid);
  }
  return fewest;
}

// To the end of the object: the key grows by "x" until it is a new one.
std::int64_t GrammarMachine::tokens_of_extra_key(const Frame& f) const {
  const Grammar::Object& object = grammar_->object(f.node);
  std::int64_t total = 0;
  std::uint64_t hash = f.hash;
  if (f.reader.phase != StringReader::Phase::kText) {
    // The begun character may become several: one "x" for each key there is makes a new one.
    total = bytes_inside(f) + std::ssize(object.key_hashes) + 1;
    for (std::int32_t list = f.used; list >= 0; list = used_[static_cast<std::size_t>(list)].next) {
      ++total;
    }
  } else {
    while (std::ranges::binary_search(object.key_hashes, hash) || is_used(f.used, hash)) {
      hash = hash_code_point(hash, 'x');
      ++total;
    }
  }
  return total + 2 + object.extra->tokens + tokens_of_required(f, true);
}

std::int64_t GrammarMachine::tokens_of_more_calls(std::int64_t count) const {
  const std::int64_t missing = std::max<std::int64_t>(0, limits_.min_calls - count);
  return missing * (call_tokens_ + 1) + 1;  // each with a comma
}

std::int64_t GrammarMachine::tokens_of_calls(const Frame& f) const {
  switch (f.phase) {
    case Phase::kOpen:
    case Phase::kFirst: {
      const std::int64_t first_comma = limits_.min_calls > 0 ? 1 : 0;
      return tokens_of_more_calls(0) - first_comma + (f.phase == Phase::kOpen ? 1 : 0);
    }
    case Phase::kNext:
      return call_tokens_ + tokens_of_more_calls(f.count + 1);
    case Phase::kInside: {
      const Grammar::Calls& calls = *grammar_->calls();
      std::int64_t fewest = kNever;
      for (std::int32_t i = f.low; i < f.high; ++i) {
        const auto at = static_cast<std::size_t>(i);
        fewest = std::min<std::int64_t>(
            fewest,
            calls.heads.tokens[at][static_cast<std::size_t>(f.depth)] + calls.arguments[at].tokens);
      }
      return fewest + 1 + tokens_of_more_calls(f.count + 1);
    }
    case Phase::kValue:
      return grammar_->calls()->arguments[static_cast<std::size_t>(f.state)].tokens + 1 +
             tokens_of_more_calls(f.count + 1);
    case Phase::kAfterValue:
      return 1 + tokens_of_more_calls(f.count + 1);
    default:
      return tokens_of_more_calls(f.count);
  }
}

// --- Is there a choice? ---

NextByte GrammarMachine::next_byte(const Threads& threads) {
  NextByte next;
  for (const std::int32_t thread : threads) {
    next_of(thread, next);
  }
  return next;
}

void GrammarMachine::next_of(std::int32_t thread, NextByte& next) {
  if (thread == kDone || next.count > 1) {
    return;
  }
  const Frame f = frame(thread);
  switch (f.kind) {
    case Kind::kLiterals:
      return next_of_literals(f, next);
    case Kind::kNumber: {
      const NumberAutomaton& automaton = grammar_->number(f.node).automaton;
      for (const char character : std::string_view("-0123456789.e+")) {
        if (automaton.advance(f.number, character)) {
          next.add(static_cast<std::uint8_t>(character));
        }
      }
      if (automaton.may_end(f.number)) {
        next_of(f.parent, next);
      }
      return;
    }
    case Kind::kString:
      return next_of_string(f, next);
    case Kind::kArray:
      return next_of_array(f, next);
    case Kind::kObject:
      return next_of_object(f, next);
    case Kind::kCalls:
      return next_of_calls(f, next);
    case Kind::kSpace:
      next.add(' ');
  }
}

void GrammarMachine::next_of_literals(const Frame& f, NextByte& next) {
  const Grammar::Literals& all = literals(f);
  for (std::int32_t i = f.low; i < f.high && next.count < 2; ++i) {
    const std::string& text = all.texts[static_cast<std::size_t>(i)];
    const auto depth = static_cast<std::size_t>(f.depth);
    if (is_used(f.used, i)) {
      continue;
    }
    if (text.size() > depth) {
      next.add(static_cast<std::uint8_t>(text[depth]));
    } else {
      next_of(f.parent, next);
    }
  }
}

void GrammarMachine::next_of_string(const Frame& f, NextByte& next) const {
  if (f.phase == Phase::kOpen) {
    next.add('"');
    return;
  }
  if (f.reader.phase != StringReader::Phase::kText) {
    next.add_several();
    return;
  }
  if (string_may_end(f)) {
    next.add('"');
  }
  const Grammar::String& string = grammar_->string(f.node);
  if (string.max_length >= 0 && f.count >= string.max_length) {
    return;
  }
  const auto add = [&next](std::uint32_t first, std::uint32_t last) {
    const bool plain =
        first == last && first >= 0x20 && first < 0x7F && first != '"' && first != '\\';
    plain ? next.add(static_cast<std::uint8_t>(first)) : next.add_several();
  };
  if (is_grounded(f)) {
    for (const std::uint32_t c : grounded_->next_characters(f.state)) {
      add(c, c);
    }
    return;
  }
  for (const TextAutomaton::Edge& edge : grammar_->automaton(string.automaton).at(f.state).edges) {
    add(edge.first, edge.last);
  }
}

void GrammarMachine::next_of_value(const Grammar::Value& value, const Frame& parent,
                                   NextByte& next) {
  const Mark before = mark();
  const std::int32_t index = push(parent);
  for (const Grammar::Node& node : value.nodes) {
    Frame child = begin(node);
    child.parent = index;
    if (node.kind == Grammar::Kind::kLiterals) {
      child.used = is_unique_item(child) ? parent.used : -1;
    }
    next_of(push(child), next);
  }
  release(before);
}

void GrammarMachine::next_of_array(const Frame& f, NextByte& next) {
  const Grammar::Array& array = grammar_->array(f.node);
  const bool room = array.max_items < 0 || f.count < array.max_items;
  if (f.phase == Phase::kOpen) {
    next.add('[');
    return;
  }
  if (f.phase != Phase::kNext && f.count >= array.min_items) {
    next.add(']');
  }
  if (!room) {
    return;
  }
  if (f.phase == Phase::kAfterValue) {
    next.add(',');
    return;
  }
  Frame parent = f;
  parent.phase = Phase::kAfterValue;
  next_of_value(item_value(array, f.count), parent, next);
}

void GrammarMachine::next_of_object(const Frame& f, NextByte& next) {
  const Grammar::Object& object = grammar_->object(f.node);
  switch (f.phase) {
    case Phase::kOpen:
      next.add('{');
      return;
    case Phase::kFirst:
    case Phase::kNext:
      if (f.phase == Phase::kFirst && all_required(f)) {
        next.add('}');
      }
      if (may_add_key(f)) {
        next.add('"');
      }
      return;
    case Phase::kInside:
      for (std::int32_t i = f.low; i < f.high && next.count < 2; ++i) {
        if (!is_used(f.used, i)) {
          next.add(static_cast<std::uint8_t>(
              object.keys.texts[static_cast<std::size_t>(i)][static_cast<std::size_t>(f.depth)]));
        }
      }
      return;
    case Phase::kValue: {
      Frame parent = f;
      parent.phase = Phase::kAfterValue;
      next_of_value(f.state >= 0 ? object.values[static_cast<std::size_t>(f.state)] : *object.extra,
                    parent, next);
      return;
    }
    case Phase::kExtraKey:
      next.add_several();
      return;
    case Phase::kColon:
      next.add(':');
      return;
    default:
      if (all_required(f)) {
        next.add('}');
      }
      if (may_add_key(f)) {
        next.add(',');
      }
  }
}

void GrammarMachine::next_of_calls(const Frame& f, NextByte& next) {
  const bool room = limits_.max_calls < 0 || f.count < limits_.max_calls;
  const bool enough = f.count >= limits_.min_calls;
  switch (f.phase) {
    case Phase::kOpen:
      next.add('[');
      return;
    case Phase::kFirst:
    case Phase::kNext:
      if (f.phase == Phase::kFirst && enough) {
        next.add(']');
      }
      if (room) {
        next.add('{');
      }
      return;
    case Phase::kInside: {
      const auto& texts = grammar_->calls()->heads.texts;
      const auto depth = static_cast<std::size_t>(f.depth);
      next.add(static_cast<std::uint8_t>(texts[static_cast<std::size_t>(f.low)][depth]));
      next.add(static_cast<std::uint8_t>(texts[static_cast<std::size_t>(f.high) - 1][depth]));
      return;
    }
    case Phase::kValue: {
      Frame parent = f;
      parent.phase = Phase::kAfterValue;
      next_of_value(grammar_->calls()->arguments[static_cast<std::size_t>(f.state)], parent, next);
      return;
    }
    case Phase::kAfterValue:
      next.add('}');
      return;
    default:
      if (enough) {
        next.add(']');
      }
      if (room) {
        next.add(',');
      }
  }
}

}  // namespace needle
