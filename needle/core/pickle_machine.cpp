#include "needle/core/pickle_machine.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/pickle_text.h"

namespace needle::internal {
namespace {

constexpr unsigned kNewestProtocol = 5;
// A checkpoint of hundreds of unstacked layers stays below a tenth of this; hostile files do not.
constexpr std::size_t kMaxNodes = 500'000;

// Opcodes that are known and refused; any other unknown byte is reported as such.
std::string_view refused_opcode(unsigned char opcode) {
  switch (opcode) {
    case 'i':
      return "INST calls a class";
    case 'o':
      return "OBJ calls a class";
    case 0x81:
      return "NEWOBJ calls a class";
    case 0x92:
      return "NEWOBJ_EX calls a class";
    case 0x82:
    case 0x83:
    case 0x84:
      return "EXT asks for Python's extension registry";
    case 'P':
    case 'Q':
      return "a persistent id refers to something outside the file";
    case 0x97:
    case 0x98:
      return "an out-of-band buffer refers to something outside the file";
    case 'S':
    case 'T':
    case 'U':
      return "text of Python 2, whose encoding the file does not tell";
    case 0x8f:
    case 0x90:
    case 0x91:
      return "a set has no place in a checkpoint";
    default:
      return "";
  }
}

}  // namespace

std::string_view kind_name(PickleKind kind) {
  constexpr std::array<std::string_view, 13> kNames = {
      "None",  "bool", "int",  "float",         "str",   "bytes",
      "tuple", "list", "dict", "a global name", "dtype", "an array without data",
      "array"};
  return kNames[static_cast<std::size_t>(kind)];
}

PickleMachine::PickleMachine(std::span<const std::byte> input) : input_(input) {}

void PickleMachine::fail(std::string_view reason) const {
  throw FormatError(format("byte {}: {}", opcode_position_, reason));
}

NodeId PickleMachine::run() {
  do {
    opcode_position_ = position_;
    if (position_ == input_.size()) {
      fail("the file ends before the pickle does");
    }
  } while (step(std::to_integer<unsigned char>(input_[position_++])));
  if (stack_.size() != 1 || !marks_.empty()) {
    fail(format("expected one value at the end, got {} and {} open marks", stack_.size(),
                marks_.size()));
  }
  if (position_ != input_.size()) {
    fail(format("{} bytes follow the end of the pickle", input_.size() - position_));
  }
  return stack_.front();
}

// ---- bytes of the input ----

std::string_view PickleMachine::take(std::uint64_t count) {
  if (count > input_.size() - position_) {
    fail(format("{} bytes are announced, {} are left", count, input_.size() - position_));
  }
  const char* const begin = reinterpret_cast<const char*>(input_.data()) + position_;
  position_ += static_cast<std::size_t>(count);
  return {begin, static_cast<std::size_t>(count)};
}

std::string_view PickleMachine::take_line() {
  const std::string_view rest(reinterpret_cast<const char*>(input_.data()) + position_,
                              input_.size() - position_);
  const std::size_t end = rest.find('\n');
  if (end == std::string_view::npos) {
    fail("a line without an end");
  }
  position_ += end + 1;
  return rest.substr(0, end);
}

std::uint64_t PickleMachine::take_unsigned(std::size_t width) {
  const std::string_view bytes = take(width);
  std::uint64_t value = 0;
  for (std::size_t i = width; i > 0; --i) {
    value = value << 8 | static_cast<unsigned char>(bytes[i - 1]);
  }
  return value;
}

// ---- arena and stack ----

NodeId PickleMachine::add(PickleNode node) {
  if (nodes_.size() == kMaxNodes) {
    fail(format("more than {} values: not a checkpoint", kMaxNodes));
  }
  nodes_.push_back(node);
  return static_cast<NodeId>(nodes_.size() - 1);
}

void PickleMachine::push_text(std::string_view text) {
  if (!is_utf8(text)) {
    fail("a string that is not UTF-8");
  }
  push({.kind = PickleKind::kText, .text = text});
}

void PickleMachine::push_container(PickleKind kind, std::vector<NodeId> items) {
  const auto slot = static_cast<std::uint32_t>(containers_.size());
  push({.kind = kind, .slot = slot});
  containers_.push_back(std::move(items));
}

void PickleMachine::push_array(PickledArray array) {
  check_array(array);
  const auto slot = static_cast<std::uint32_t>(arrays_.size());
  push({.kind = PickleKind::kArray, .slot = slot});
  arrays_.push_back(std::move(array));
}

NodeId PickleMachine::top() const {
  if (stack_.size() == (marks_.empty() ? 0 : marks_.back())) {
    fail("the stack is empty");
  }
  return stack_.back();
}

NodeId PickleMachine::pop() {
  const NodeId id = top();
  stack_.pop_back();
  return id;
}

PickleNode& PickleMachine::top_of(PickleKind kind, std::string_view operation) {
  PickleNode& node = nodes_[top()];
  if (node.kind != kind) {
    fail(format("{} expects a {}, got {}", operation, kind_name(kind), kind_name(node.kind)));
  }
  return node;
}

std::vector<NodeId> PickleMachine::pop_to_mark() {
  if (marks_.empty()) {
    fail("a mark is missing");
  }
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  marks_.pop_back();
  std::vector<NodeId> items(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  return items;
}

std::vector<NodeId> PickleMachine::pop_many(std::size_t count) {
  std::vector<NodeId> items(count);
  for (std::size_t i = count; i > 0; --i) {
    items[i - 1] = pop();
  }
  return items;
}

std::string_view PickleMachine::own(std::string text) {
  owned_bytes_ += text.size();
  if (owned_bytes_ > 4 * input_.size()) {
    fail("the file unfolds to several times its size");
  }
  owned_.push_back(std::move(text));
  return owned_.back();
}

// ---- opcodes ----

bool PickleMachine::step(unsigned char opcode) {
  switch (opcode) {
    case '.':
      return false;
    case 0x80: {
      const std::uint64_t protocol = take_unsigned(1);
      if (protocol > kNewestProtocol) {
        fail(format("pickle protocol {}, at most {} is read", protocol, kNewestProtocol));
      }
      return true;
    }
    case 0x95: {
      const std::uint64_t length = take_unsigned(8);
      if (length > input_.size() - position_) {
        fail(format("a frame of {} bytes, {} are left", length, input_.size() - position_));
      }
      return true;
    }
    case 'N':
      push({.kind = PickleKind::kNone});
      return true;
    case 'c': {
      const std::string_view module = take_line();
      push_global(module, take_line());
      return true;
    }
    case 0x93: {
      const PickleNode& name = nodes_[pop()];
      const PickleNode& module = nodes_[pop()];
      if (name.kind != PickleKind::kText || module.kind != PickleKind::kText) {
        fail("a global name that is not text");
      }
      push_global(module.text, name.text);
      return true;
    }
    case 'R':
      reduce();
      return true;
    case 'b':
      build();
      return true;
    default:
      break;
  }
  if (step_number(opcode) || step_string(opcode) || step_container(opcode) || step_memo(opcode)) {
    return true;
  }
  const std::string_view reason = refused_opcode(opcode);
  fail(reason.empty() ? format("no opcode of a pickle: 0x{:02x}", static_cast<unsigned>(opcode))
                      : std::string(reason));
}

bool PickleMachine::step_number(unsigned char opcode) {
  const auto push_int = [this](std::int64_t value) {
    push({.kind = PickleKind::kInt, .integer = value});
  };
  switch (opcode) {
    case 0x88:
    case 0x89:
      push({.kind = PickleKind::kBool, .integer = opcode == 0x88 ? 1 : 0});
      return true;
    case 'I': {
      const std::string_view line = take_line();
      if (line == "00" || line == "01") {
        push({.kind = PickleKind::kBool, .integer = line == "01" ? 1 : 0});
      } else {
        push_int(parse_decimal(line));
      }
      return true;
    }
    case 'L': {
      std::string_view line = take_line();
      if (line.ends_with('L')) {
        line.remove_suffix(1);
      }
      push_int(parse_decimal(line));
      return true;
    }
    case 'J':
      push_int(static_cast<std::int32_t>(static_cast<std::uint32_t>(take_unsigned(4))));
      return true;
    case 'K':
      push_int(static_cast<std::int64_t>(take_unsigned(1)));
      return true;
    case 'M':
      push_int(static_cast<std::int64_t>(take_unsigned(2)));
      return true;
    case 0x8a:
      push_int(parse_long(take_counted(1)));
      return true;
    case 0x8b:  // the length is signed; a negative one fails as far too long
      push_int(parse_long(take_counted(4)));
      return true;
    case 'F': {
      const std::string_view line = take_line();
      double value = 0.0;
      const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
      if (error != std::errc() || end != line.data() + line.size()) {
        fail(format("not a number: {}", shown(line)));
      }
      push({.kind = PickleKind::kFloat, .real = value});
      return true;
    }
    case 'G': {
      std::uint64_t bits = 0;
      for (const char c : take(8)) {  // the one big-endian number of the format
        bits = bits << 8 | static_cast<unsigned char>(c);
      }
      push({.kind = PickleKind::kFloat, .real = std::bit_cast<double>(bits)});
      return true;
    }
    default:
      return false;
  }
}

bool PickleMachine::step_string(unsigned char opcode) {
  const auto push_bytes = [this](std::string_view bytes) {
    push({.kind = PickleKind::kBytes, .text = bytes});
  };
  switch (opcode) {
    case 'V':
      push_text(own(decode_raw_escapes(take_line())));
      return true;
    case 0x8c:
      push_text(take_counted(1));
      return true;
    case 'X':
      push_text(take_counted(4));
      return true;
    case 0x8d:
      push_text(take_counted(8));
      return true;
    case 'C':
      push_bytes(take_counted(1));
      return true;
    case 'B':
      push_bytes(take_counted(4));
      return true;
    case 0x8e:
    case 0x96:  // bytearray; an array's buffer is one
      push_bytes(take_counted(8));
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_container(unsigned char opcode) {
  switch (opcode) {
    case '(':
      marks_.push_back(stack_.size());
      return true;
    case '0':
      // As in Python, POP right after a mark takes the mark.
      if (!marks_.empty() && marks_.back() == stack_.size()) {
        marks_.pop_back();
      } else {
        pop();
      }
      return true;
    case '1':
      pop_to_mark();
      return true;
    case '2':
      stack_.push_back(top());
      return true;
    case ')':
      push_container(PickleKind::kTuple, {});
      return true;
    case 0x85:
    case 0x86:
    case 0x87:
      push_container(PickleKind::kTuple, pop_many(opcode - 0x84u));
      return true;
    case 't':
      push_container(PickleKind::kTuple, pop_to_mark());
      return true;
    case ']':
      push_container(PickleKind::kList, {});
      return true;
    case 'l':
      push_container(PickleKind::kList, pop_to_mark());
      return true;
    case 'a':
      extend(PickleKind::kList, pop_many(1));
      return true;
    case 'e':
      extend(PickleKind::kList, pop_to_mark());
      return true;
    case '}':
      push_container(PickleKind::kDict, {});
      return true;
    case 'd': {
      std::vector<NodeId> items = pop_to_mark();
      push_container(PickleKind::kDict, {});
      extend(PickleKind::kDict, std::move(items));
      return true;
    }
    case 's':
      extend(PickleKind::kDict, pop_many(2));
      return true;
    case 'u':
      extend(PickleKind::kDict, pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_memo(unsigned char opcode) {
  switch (opcode) {
    case 'p':
    case 'g': {
      const std::int64_t key = parse_decimal(take_line());
      if (key < 0) {
        fail("a negative memo index");
      }
      opcode == 'p' ? remember(static_cast<std::uint64_t>(key))
                    : recall(static_cast<std::uint64_t>(key));
      return true;
    }
    case 'q':
      remember(take_unsigned(1));
      return true;
    case 'r':
      remember(take_unsigned(4));
      return true;
    case 0x94:
      remember(memo_.size());
      return true;
    case 'h':
      recall(take_unsigned(1));
      return true;
    case 'j':
      recall(take_unsigned(4));
      return true;
    default:
      return false;
  }
}

void PickleMachine::remember(std::uint64_t key) {
  if (memo_.size() == kMaxNodes) {
    fail(format("more than {} values are memorised: not a checkpoint", kMaxNodes));
  }
  memo_[key] = top();
}

void PickleMachine::recall(std::uint64_t key) {
  const auto found = memo_.find(key);
  if (found == memo_.end()) {
    fail(format("memo {} is read and was never written", key));
  }
  stack_.push_back(found->second);
}

void PickleMachine::extend(PickleKind kind, std::vector<NodeId> items) {
  const PickleNode& target = top_of(kind, kind == PickleKind::kList ? "APPEND" : "SETITEM");
  if (kind == PickleKind::kDict) {
    if (items.size() % 2 != 0) {
      fail("a key without a value");
    }
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (nodes_[items[i]].kind != PickleKind::kText) {
        fail(format("a dict key is {}, expected str", kind_name(nodes_[items[i]].kind)));
      }
    }
  }
  std::vector<NodeId>& container = containers_[target.slot];
  container.insert(container.end(), items.begin(), items.end());
}

std::int64_t PickleMachine::parse_decimal(std::string_view text) const {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail(format("not a 64-bit integer: {}", shown(text)));
  }
  return value;
}

// Two's complement, little-endian, as few bytes as hold it.
std::int64_t PickleMachine::parse_long(std::string_view bytes) const {
  if (bytes.size() > 8) {
    fail(format("an integer of {} bytes, at most 8 are read", bytes.size()));
  }
  if (bytes.empty()) {
    return 0;
  }
  std::uint64_t value = (static_cast<unsigned char>(bytes.back()) & 0x80) != 0 ? UINT64_MAX : 0;
  for (std::size_t i = bytes.size(); i > 0; --i) {
    value = value << 8 | static_cast<unsigned char>(bytes[i - 1]);
  }
  return static_cast<std::int64_t>(value);
}

// Protocol 0: Latin-1 with \uXXXX and \UXXXXXXXX; the pickler writes a backslash as \u005c.
std::string PickleMachine::decode_raw_escapes(std::string_view line) const {
  std::string text;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      append_utf8(text, static_cast<unsigned char>(line[i]));
      continue;
    }
    const char kind = i + 1 < line.size() ? line[i + 1] : '\0';
    const std::size_t digits = kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    std::uint32_t code = 0;
    const std::string_view hex = line.substr(std::min(i + 2, line.size()), digits);
    const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
    if (digits == 0 || hex.size() != digits || error != std::errc() ||
        end != hex.data() + hex.size() || !is_scalar_value(code)) {
      fail("a wrong escape in a string");
    }
    append_utf8(text, code);
    i += 1 + digits;
  }
  return text;
}

}  // namespace needle::internal
