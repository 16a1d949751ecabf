#include "needle/decode/call_spans.h"

#include <algorithm>
#include <utility>

#include "needle/calls/json_value.h"

namespace needle {
namespace {

// Walks over JSON that is known to be well formed.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool take(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) {
      return false;
    }
    ++at_;
    return true;
  }

  TextRange value() {
    skip_space();
    const std::size_t begin = at_;
    std::size_t depth = 0;
    while (at_ < text_.size()) {
      const char character = text_[at_];
      if (character == '"') {
        skip_string();
      } else if (character == '{' || character == '[') {
        ++depth;
        ++at_;
      } else if (character == '}' || character == ']') {
        if (depth == 0) {
          break;
        }
        --depth;
        ++at_;
      } else if (depth == 0 && (character == ',' || character == ':')) {
        break;
      } else {
        ++at_;
      }
    }
    std::size_t end = at_;
    while (end > begin && is_space(text_[end - 1])) {
      --end;
    }
    return {begin, end};
  }

  std::size_t position() const { return at_; }

 private:
  static bool is_space(char character) {
    return character == ' ' || character == '\t' || character == '\n' || character == '\r';
  }

  void skip_space() {
    while (at_ < text_.size() && is_space(text_[at_])) {
      ++at_;
    }
  }

  void skip_string() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      at_ += text_[at_] == '\\' ? 1U : 0U;
    }
    at_ = std::min(at_ + 1, text_.size());
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

std::string string_at(std::string_view text, TextRange range) {
  const auto parsed = parse_json_value(text.substr(range.begin, range.end - range.begin));
  return parsed.value && parsed.value->is_string() ? parsed.value->as_string() : "";
}

// visit(key, value) for each member of the object that comes next; false if none does.
template <typename Visit>
bool visit_members(Scanner& scanner, Visit visit) {
  if (!scanner.take('{')) {
    return false;
  }
  if (scanner.take('}')) {
    return true;
  }
  do {
    const TextRange key = scanner.value();
    if (!scanner.take(':') || !visit(key)) {
      return false;
    }
  } while (scanner.take(','));
  return scanner.take('}');
}

bool locate_call(std::string_view text, Scanner& scanner, CallSpan& call) {
  bool named = false;
  const bool whole = visit_members(scanner, [&](TextRange key) {
    const std::string name = string_at(text, key);
    if (name == "arguments") {
      call.arguments.clear();
      return visit_members(scanner, [&](TextRange argument) {
        call.arguments.push_back(
            {.name = string_at(text, argument), .key = argument, .value = scanner.value()});
        return true;
      });
    }
    const TextRange value = scanner.value();
    if (name == "name") {
      call.name = string_at(text, value);
      call.name_text = value;
      named = true;
    }
    return true;
  });
  return whole && named;
}

}  // namespace

std::optional<std::vector<CallSpan>> locate_calls(std::string_view text) {
  const auto parsed = parse_json_value(text);
  if (!parsed.value || !parsed.value->is_array()) {
    return std::nullopt;
  }
  std::vector<CallSpan> calls;
  Scanner scanner(text);
  scanner.take('[');
  if (scanner.take(']')) {
    return calls;
  }
  do {
    const std::size_t begin = text.find('{', scanner.position());
    CallSpan call;
    if (!locate_call(text, scanner, call)) {
      return std::nullopt;
    }
    call.all = {begin, scanner.position()};
    calls.push_back(std::move(call));
  } while (scanner.take(','));
  return calls;
}

}  // namespace needle
