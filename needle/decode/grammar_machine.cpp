#include "needle/decode/grammar_machine.h"

#include <algorithm>

#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

// An answer is on that many stacks at most; further alternatives are given up, which leaves the
// others as they are.
constexpr std::size_t kMostThreads = 512;

const Grammar::Value& item_value(const Grammar::Array& array, std::int64_t index) {
  return index < std::ssize(array.prefix) ? array.prefix[static_cast<std::size_t>(index)]
                                          : *array.items;
}

// Texts of [low, high) that have `byte` next.
template <typename Frame>
bool narrow(const Grammar::Literals& all, Frame& f, std::uint8_t byte) {
  const auto depth = static_cast<std::size_t>(f.depth);
  const auto begin = all.texts.begin() + f.low;
  const auto end = all.texts.begin() + f.high;
  // A text that ends here comes first; as -1 it is below all bytes.
  const auto next = [depth](const std::string& text) {
    return text.size() == depth ? -1 : static_cast<int>(static_cast<std::uint8_t>(text[depth]));
  };
  // Two searches: clang 14 cannot compile libstdc++'s ranges::equal_range.
  const auto first = std::ranges::lower_bound(begin, end, static_cast<int>(byte), {}, next);
  const auto last = std::ranges::upper_bound(first, end, static_cast<int>(byte), {}, next);
  f.low = static_cast<std::int32_t>(first - all.texts.begin());
  f.high = static_cast<std::int32_t>(last - all.texts.begin());
  ++f.depth;
  return f.low < f.high;
}

template <typename Frame>
bool is_one_whole(const Grammar::Literals& all, const Frame& f) {
  return f.high - f.low == 1 &&
         all.texts[static_cast<std::size_t>(f.low)].size() == static_cast<std::size_t>(f.depth);
}

}  // namespace

GrammarMachine::GrammarMachine(std::shared_ptr<const Grammar> grammar, const CallLimits& limits,
                               std::shared_ptr<GroundedValues> grounded)
    : grammar_(std::move(grammar)), limits_(limits), grounded_(std::move(grounded)) {
  constexpr std::size_t kRoom = 8192;  // untouched memory costs nothing
  frames_.reserve(kRoom);
  used_.reserve(kRoom);
  if (grounded_ != nullptr) {
    grounded_tokens_ = grounded_->most_tokens();
  }
  const Grammar::Calls* const calls = grammar_->calls();
  if (calls == nullptr) {
    return;
  }
  high_ = static_cast<std::int32_t>(calls->names.size());
  if (limits_.tool) {
    const auto found = std::ranges::find(calls->names, *limits_.tool);
    if (found == calls->names.end()) {
      throw Error(format("a call of '{}' is asked for, but no tool has that name", *limits_.tool));
    }
    low_ = static_cast<std::int32_t>(found - calls->names.begin());
    high_ = low_ + 1;
  }
  if (low_ == high_) {
    limits_.max_calls = 0;
  }
  if (limits_.max_calls >= 0 && limits_.min_calls > limits_.max_calls) {
    throw Error(format("at least {} calls are asked for, but {}", limits_.min_calls,
                       low_ == high_ ? std::string("there are no tools")
                                     : format("at most {} are allowed", limits_.max_calls)));
  }
  for (std::int32_t i = low_; i < high_; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::int64_t tokens = calls->heads.tokens[at].front() + calls->arguments[at].tokens + 1;
    call_tokens_ = i == low_ ? tokens : std::min(call_tokens_, tokens);
  }
}

GrammarMachine::Frame GrammarMachine::root_calls() const { return {.kind = Kind::kCalls}; }

GrammarMachine::Threads GrammarMachine::start() {
  Threads threads;
  if (grammar_->trie().has_dummy_prefix()) {
    add({.kind = Kind::kSpace}, threads);
  } else if (grammar_->calls() != nullptr) {
    add(root_calls(), threads);
  } else {
    for (const Grammar::Node& node : grammar_->root().nodes) {
      add(begin(node), threads);
    }
  }
  return threads;
}

void GrammarMachine::step(const Threads& from, std::uint8_t byte, Threads& to) {
  to.clear();
  for (const std::int32_t thread : from) {
    step_thread(thread, byte, to);
  }
}

bool GrammarMachine::may_end(const Threads& threads) const {
  return std::ranges::any_of(threads, [this](std::int32_t thread) {
    while (thread != kDone) {
      const Frame& f = frame(thread);
      const bool whole =
          (f.kind == Kind::kLiterals && whole_literal(f) >= 0) ||
          (f.kind == Kind::kNumber && grammar_->number(f.node).automaton.may_end(f.number));
      if (!whole || f.parent != kDone) {
        return false;
      }
      thread = f.parent;
    }
    return true;
  });
}

std::int32_t GrammarMachine::push(const Frame& frame) {
  frames_.push_back(frame);
  return static_cast<std::int32_t>(frames_.size()) - 1;
}

void GrammarMachine::add(const Frame& frame, Threads& to) {
  if (to.size() < kMostThreads) {
    to.push_back(push(frame));
  }
}

void GrammarMachine::leave(std::int32_t parent, Threads& to) {
  if (std::ranges::find(to, parent) == to.end() && to.size() < kMostThreads) {
    to.push_back(parent);
  }
}

GrammarMachine::Frame GrammarMachine::begin(const Grammar::Node& node) const {
  Frame f{.node = node.index};
  switch (node.kind) {
    case Grammar::Kind::kLiterals:
      f.high = static_cast<std::int32_t>(grammar_->literals(node.index).texts.size());
      break;
    case Grammar::Kind::kNumber:
      f.kind = Kind::kNumber;
      if (const Grammar::Literals* numbers =
              grounded_ != nullptr ? grounded_->numbers(node.index) : nullptr) {
        f.kind = Kind::kLiterals;
        f.node = ~node.index;
        f.high = static_cast<std::int32_t>(numbers->texts.size());
      }
      break;
    case Grammar::Kind::kString:
      f.kind = Kind::kString;
      break;
    case Grammar::Kind::kArray:
      f.kind = Kind::kArray;
      break;
    case Grammar::Kind::kObject:
      f.kind = Kind::kObject;
      break;
  }
  return f;
}

// `parent` as it stands once the value is whole.
void GrammarMachine::enter(const Grammar::Value& value, const Frame& parent, std::uint8_t byte,
                           Threads& to) {
  const std::int64_t behind = tokens(parent) + parent.tokens_behind;
  const std::int32_t index = push(parent);
  for (const Grammar::Node& node : value.nodes) {
    Frame child = begin(node);
    child.parent = index;
    child.tokens_behind = behind;
    if (node.kind == Grammar::Kind::kLiterals) {
      child.used = is_unique_item(child) ? parent.used : -1;
    }
    step_frame(child, byte, to);
  }
}

void GrammarMachine::step_thread(std::int32_t thread, std::uint8_t byte, Threads& to) {
  if (thread != kDone) {
    const Frame f = frame(thread);  // a copy: frames move while stepping
    step_frame(f, byte, to);
  }
}

void GrammarMachine::step_frame(const Frame& f, std::uint8_t byte, Threads& to) {
  switch (f.kind) {
    case Kind::kLiterals:
      return step_literals(f, byte, to);
    case Kind::kNumber: {
      const NumberAutomaton& automaton = grammar_->number(f.node).automaton;
      if (const auto next = automaton.advance(f.number, static_cast<char>(byte))) {
        Frame behind = f;
        behind.number = *next;
        add(behind, to);
      } else if (automaton.may_end(f.number)) {
        step_thread(f.parent, byte, to);
      }
      return;
    }
    case Kind::kString:
      return step_string(f, byte, to);
    case Kind::kArray:
      return step_array(f, byte, to);
    case Kind::kObject:
      return step_object(f, byte, to);
    case Kind::kCalls:
      return step_calls(f, byte, to);
    case Kind::kSpace:
      return step_root(byte, to);
  }
}

// The tokenizer's space before the answer.
void GrammarMachine::step_root(std::uint8_t byte, Threads& to) {
  if (byte != ' ') {
    return;
  }
  if (grammar_->calls() != nullptr) {
    add(root_calls(), to);
    return;
  }
  for (const Grammar::Node& node : grammar_->root().nodes) {
    add(begin(node), to);
  }
}

// --- Literals ---

const Grammar::Literals& GrammarMachine::literals(const Frame& f) const {
  return f.node >= 0 ? grammar_->literals(f.node) : *grounded_->numbers(~f.node);
}

bool GrammarMachine::is_unique_item(const Frame& f) const {
  return f.parent != kDone && frame(f.parent).kind == Kind::kArray &&
         grammar_->array(frame(f.parent).node).unique;
}

bool GrammarMachine::is_used(std::int32_t list, std::int32_t index) const {
  for (; list >= 0; list = used_[static_cast<std::size_t>(list)].next) {
    if (used_[static_cast<std::size_t>(list)].index == index) {
      return true;
    }
  }
  return false;
}

bool GrammarMachine::is_used(std::int32_t list, std::uint64_t hash) const {
  for (; list >= 0; list = used_[static_cast<std::size_t>(list)].next) {
    const Used& cell = used_[static_cast<std::size_t>(list)];
    if (cell.index < 0 && cell.hash == hash) {
      return true;
    }
  }
  return false;
}

std::int32_t GrammarMachine::use(std::int32_t list, std::int32_t index, std::uint64_t hash) {
  used_.push_back({.next = list, .index = index, .hash = hash});
  return static_cast<std::int32_t>(used_.size()) - 1;
}

bool GrammarMachine::any_unused(const Frame& f) const {
  std::int32_t count = f.high - f.low;
  for (std::int32_t list = f.used; list >= 0; list = used_[static_cast<std::size_t>(list)].next) {
    const std::int32_t index = used_[static_cast<std::size_t>(list)].index;
    count -= index >= f.low && index < f.high ? 1 : 0;
  }
  return count > 0;
}

std::int32_t GrammarMachine::whole_literal(const Frame& f) const {
  const Grammar::Literals& all = literals(f);
  const bool whole = f.low < f.high && all.texts[static_cast<std::size_t>(f.low)].size() ==
                                           static_cast<std::size_t>(f.depth);
  return whole && !is_used(f.used, f.low) ? f.low : -1;
}

std::int32_t GrammarMachine::parent_of_literal(const Frame& f, std::int32_t literal) {
  if (!is_unique_item(f)) {
    return f.parent;
  }
  Frame parent = frame(f.parent);
  parent.used = use(parent.used, literal, 0);
  return push(parent);
}

void GrammarMachine::step_literals(const Frame& f, std::uint8_t byte, Threads& to) {
  const Grammar::Literals& all = literals(f);
  Frame next = f;
  if (narrow(all, next, byte) && any_unused(next)) {
    if (is_one_whole(all, next)) {
      leave(parent_of_literal(next, next.low), to);
    } else {
      add(next, to);
    }
  }
  if (const std::int32_t whole = whole_literal(f); whole >= 0) {
    step_thread(parent_of_literal(f, whole), byte, to);
  }
}

// --- Strings ---

bool GrammarMachine::is_grounded(const Frame& f) const {
  return grounded_ != nullptr && grammar_->string(f.node).grounded && grounded_->has_spans();
}

std::int32_t GrammarMachine::string_advance(const Frame& f, std::uint32_t code_point) const {
  const Grammar::String& string = grammar_->string(f.node);
  if (string.max_length >= 0 && f.count >= string.max_length) {
    return -1;
  }
  return is_grounded(f) ? grounded_->advance(f.state, code_point)
                        : grammar_->automaton(string.automaton).advance(f.state, code_point);
}

bool GrammarMachine::string_may_end(const Frame& f) const {
  const Grammar::String& string = grammar_->string(f.node);
  return f.count >= string.min_length &&
         (is_grounded(f) ? grounded_->may_end(f.state)
                         : grammar_->automaton(string.automaton).may_end(f.state));
}

void GrammarMachine::step_string(const Frame& f, std::uint8_t byte, Threads& to) {
  Frame next = f;
  if (f.phase == Phase::kOpen) {
    next.phase = Phase::kInside;
    if (byte == '"') {
      add(next, to);
    }
    return;
  }
  std::uint32_t code_point = 0;
  switch (string_reader::advance(next.reader, byte, code_point)) {
    case string_reader::Event::kDead:
      return;
    case string_reader::Event::kQuote:
      if (string_may_end(f)) {
        leave(f.parent, to);
      }
      return;
    case string_reader::Event::kCharacter:
      next.state = string_advance(f, code_point);
      ++next.count;
      if (next.state >= 0) {
        add(next, to);
      }
      return;
    case string_reader::Event::kInside: {
      const std::int64_t most = grammar_->string(f.node).max_length;
      if ((most < 0 || f.count < most) && bytes_inside(next) >= 0) {
        add(next, to);
      }
      return;
    }
  }
}

std::optional<GrammarMachine::StringPlace> GrammarMachine::string_place(
    const Threads& threads) const {
  if (threads.size() != 1 || threads[0] == kDone) {
    return std::nullopt;
  }
  const Frame& f = frame(threads[0]);
  if (f.kind != Kind::kString || f.phase != Phase::kInside ||
      f.reader.phase != StringReader::Phase::kText || is_grounded(f)) {
    return std::nullopt;
  }
  const Grammar::String& string = grammar_->string(f.node);
  constexpr std::int64_t kMostInCharacter = 11;  // bytes to come of a begun \u pair
  return StringPlace{
      .automaton = string.automaton,
      .state = f.state,
      .characters_left = string.max_length < 0 ? -1 : string.max_length - f.count,
      .most_tokens_to_end =
          kMostInCharacter + grammar_->automaton(string.automaton).most_bytes_to_end() +
          std::max<std::int64_t>(0, string.min_length - f.count) + 1 + in_tokens(f.tokens_behind)};
}

// --- Arrays ---

void GrammarMachine::step_array(const Frame& f, std::uint8_t byte, Threads& to) {
  const Grammar::Array& array = grammar_->array(f.node);
  Frame next = f;
  const bool room = array.max_items < 0 || f.count < array.max_items;
  if (f.phase == Phase::kOpen) {
    next.phase = Phase::kFirst;
    if (byte == '[') {
      add(next, to);
    }
    return;
  }
  if (byte == ']' && f.phase != Phase::kNext && f.count >= array.min_items) {
    leave(f.parent, to);
    return;
  }
  if (!room) {
    return;
  }
  if (f.phase == Phase::kAfterValue) {
    next.phase = Phase::kNext;
    if (byte == ',') {
      add(next, to);
    }
    return;
  }
  next.phase = Phase::kAfterValue;
  ++next.count;
  enter(item_value(array, f.count), next, byte, to);
}

// --- Objects ---

bool GrammarMachine::all_required(const Frame& f) const {
  const Grammar::Object& object = grammar_->object(f.node);
  for (std::size_t i = 0; i < object.required.size(); ++i) {
    if (object.required[i] && !is_used(f.used, static_cast<std::int32_t>(i))) {
      return false;
    }
  }
  return true;
}

bool GrammarMachine::may_add_key(const Frame& f) const {
  const Grammar::Object& object = grammar_->object(f.node);
  Frame all = f;
  all.low = 0;
  all.high = static_cast<std::int32_t>(object.values.size());
  return object.extra || any_unused(all);
}

void GrammarMachine::step_object(const Frame& f, std::uint8_t byte, Threads& to) {
  const Grammar::Object& object = grammar_->object(f.node);
  Frame next = f;
  switch (f.phase) {
    case Phase::kOpen:
      next.phase = Phase::kFirst;
      if (byte == '{') {
        add(next, to);
      }
      return;
    case Phase::kFirst:
    case Phase::kNext:
      if (byte == '}' && f.phase == Phase::kFirst && all_required(f)) {
        leave(f.parent, to);
        return;
      }
      next.phase = Phase::kInside;
      next.low = 0;
      next.high = static_cast<std::int32_t>(object.values.size());
      next.depth = 0;
      step_key(next, byte, to);
      if (object.extra && byte == '"') {
        next.phase = Phase::kExtraKey;
        next.reader = {};
        next.hash = kTextHash;
        add(next, to);
      }
      return;
    case Phase::kInside:
      return step_key(f, byte, to);
    case Phase::kExtraKey:
      return step_extra_key(f, byte, to);
    case Phase::kColon:
      next.phase = Phase::kValue;
      next.state = -1;
      if (byte == ':') {
        add(next, to);
      }
      return;
    case Phase::kValue:
      next.phase = Phase::kAfterValue;
      enter(f.state >= 0 ? object.values[static_cast<std::size_t>(f.state)] : *object.extra, next,
            byte, to);
      return;
    default:
      if (byte == '}' && all_required(f)) {
        leave(f.parent, to);
      } else if (byte == ',' && may_add_key(f)) {
        next.phase = Phase::kNext;
        add(next, to);
      }
  }
}

void GrammarMachine::step_key(const Frame& f, std::uint8_t byte, Threads& to) {
  const Grammar::Literals& keys = grammar_->object(f.node).keys;
  Frame next = f;
  if (!narrow(keys, next, byte) || !any_unused(next)) {
    return;
  }
  if (is_one_whole(keys, next)) {
    next.phase = Phase::kValue;
    next.state = next.low;
    next.used = use(next.used, next.low, 0);
  }
  add(next, to);
}

void GrammarMachine::step_extra_key(const Frame& f, std::uint8_t byte, Threads& to) {
  const std::vector<std::uint64_t>& declared = grammar_->object(f.node).key_hashes;
  Frame next = f;
  std::uint32_t code_point = 0;
  switch (string_reader::advance(next.reader, byte, code_point)) {
    case string_reader::Event::kDead:
      return;
    case string_reader::Event::kQuote:
      if (std::ranges::binary_search(declared, f.hash) || is_used(f.used, f.hash)) {
        return;
      }
      next.phase = Phase::kColon;
      next.used = use(f.used, -1, f.hash);
      break;
    case string_reader::Event::kCharacter:
      next.hash = hash_code_point(f.hash, code_point);
      break;
    case string_reader::Event::kInside:
      if (bytes_inside(next) < 0) {
        return;
      }
      break;
  }
  add(next, to);
}

// --- Calls ---

void GrammarMachine::step_calls(const Frame& f, std::uint8_t byte, Threads& to) {
  Frame next = f;
  const bool room = limits_.max_calls < 0 || f.count < limits_.max_calls;
  const bool enough = f.count >= limits_.min_calls;
  const auto go = [&](Phase phase) {
    next.phase = phase;
    add(next, to);
  };
  switch (f.phase) {
    case Phase::kOpen:
      if (byte == '[') {
        go(Phase::kFirst);
      }
      return;
    case Phase::kFirst:
    case Phase::kNext:
      if (byte == ']' && f.phase == Phase::kFirst && enough) {
        leave(kDone, to);
      } else if (room) {
        next.phase = Phase::kInside;
        next.low = low_;
        next.high = high_;
        next.depth = 0;
        step_head(next, byte, to);
      }
      return;
    case Phase::kInside:
      return step_head(f, byte, to);
    case Phase::kValue:
      next.phase = Phase::kAfterValue;
      return enter(grammar_->calls()->arguments[static_cast<std::size_t>(f.state)], next, byte, to);
    case Phase::kAfterValue:
      ++next.count;
      if (byte == '}') {
        go(Phase::kAfterCall);
      }
      return;
    default:
      if (byte == ']' && enough) {
        leave(kDone, to);
      } else if (byte == ',' && room) {
        go(Phase::kNext);
      }
  }
}

void GrammarMachine::step_head(const Frame& f, std::uint8_t byte, Threads& to) {
  const Grammar::Literals& heads = grammar_->calls()->heads;
  Frame next = f;
  if (!narrow(heads, next, byte)) {
    return;
  }
  if (is_one_whole(heads, next)) {
    next.phase = Phase::kValue;
    next.state = next.low;
  }
  add(next, to);
}

}  // namespace needle
