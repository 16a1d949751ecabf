// The reading half of json_value.h: a recursive-descent parser with Python's rules (json/decoder.py
// and its C scanner).
#include <algorithm>
#include <unordered_map>

#include "needle/calls/json_value.h"
#include "needle/calls/utf8.h"
#include "needle/core/error.h"

namespace needle {
namespace {

// Objects above this size find repeated keys through a hash map: a hostile one must not cost
// quadratic time.
constexpr std::size_t kIndexedMembers = 16;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  JsonParseResult parse() {
    JsonParseResult result;
    JsonValue value;
    skip_space();
    if (parse_value(value, 0)) {
      skip_space();
      if (at_ == text_.size()) {
        result.value = std::move(value);
        return result;
      }
      fail("expected the end of the text");
    }
    result.error = format("{}: {}", position_text(), message_);
    return result;
  }

 private:
  bool fail(std::string_view message) {
    message_ = message;
    return false;
  }

  std::string position_text() const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    std::size_t column = 1;
    for (const char c : before.substr(line_start)) {
      column += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
    }
    return format("line {} column {}", line, column);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') {
      ++at_;
    }
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) {
      return false;
    }
    at_ += word.size();
    return true;
  }

  bool parse_value(JsonValue& value, int depth) {
    if (depth >= kMaxJsonDepth && (peek() == '{' || peek() == '[')) {
      return fail(format("nested deeper than {} levels", kMaxJsonDepth));
    }
    switch (peek()) {
      case '{':
        return parse_object(value, depth);
      case '[':
        return parse_array(value, depth);
      case '"': {
        std::string text;
        const bool ok = parse_string(text);
        value = JsonValue::string(std::move(text));
        return ok;
      }
      default:
        return parse_scalar(value);
    }
  }

  bool parse_scalar(JsonValue& value) {
    if (take("true")) {
      value = JsonValue::boolean(true);
    } else if (take("false")) {
      value = JsonValue::boolean(false);
    } else if (take("null")) {
      value = JsonValue();
    } else {
      return parse_number(value);
    }
    return true;
  }

  bool parse_number(JsonValue& value) {
    for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (take(word)) {
        value = JsonValue::number_from_text(word);
        return true;
      }
    }
    const std::string_view rest = text_.substr(at_);
    const std::size_t length = json_number_length(rest);
    if (length == 0) {
      return fail("expected a value");
    }
    value = JsonValue::number_from_text(rest.substr(0, length));
    at_ += length;
    return true;
  }

  bool parse_array(JsonValue& value, int depth) {
    ++at_;  // [
    JsonValue::Array items;
    skip_space();
    if (!take("]")) {
      while (true) {
        skip_space();
        if (!parse_value(items.emplace_back(), depth + 1)) {
          return false;
        }
        skip_space();
        if (take("]")) {
          break;
        }
        if (!take(",")) {
          return fail("expected ',' or ']'");
        }
      }
    }
    value = JsonValue::array(std::move(items));
    return true;
  }

  bool parse_object(JsonValue& value, int depth) {
    ++at_;  // {
    JsonValue::Object members;
    std::unordered_map<std::string, std::size_t> index;
    skip_space();
    if (!take("}")) {
      while (true) {
        skip_space();
        std::string key;
        if (peek() != '"') {
          return fail("expected a key in double quotes");
        }
        if (!parse_string(key)) {
          return false;
        }
        skip_space();
        if (!take(":")) {
          return fail("expected ':'");
        }
        skip_space();
        JsonValue& member = member_for(members, index, std::move(key));
        if (!parse_value(member, depth + 1)) {
          return false;
        }
        skip_space();
        if (take("}")) {
          break;
        }
        if (!take(",")) {
          return fail("expected ',' or '}'");
        }
      }
    }
    value = JsonValue::object(std::move(members));
    return true;
  }

  // A repeated key keeps its first place.
  static JsonValue& member_for(JsonValue::Object& members,
                               std::unordered_map<std::string, std::size_t>& index,
                               std::string key) {
    if (members.size() < kIndexedMembers) {
      for (auto& [name, value] : members) {
        if (name == key) {
          return value;
        }
      }
    } else {
      for (std::size_t i = index.size(); i < members.size(); ++i) {
        index.emplace(members[i].first, i);
      }
      if (const auto found = index.find(key); found != index.end()) {
        return members[found->second].second;
      }
    }
    if (members.empty()) {
      members.reserve(kUsualMembers);
    }
    return members.emplace_back(std::move(key), JsonValue()).second;
  }

  bool parse_string(std::string& out) {
    ++at_;  // "
    while (at_ < text_.size()) {
      const std::size_t plain = json_plain_length(text_.substr(at_));
      out.append(text_, at_, plain);
      at_ += plain;
      if (at_ == text_.size()) {
        break;
      }
      const auto byte = static_cast<unsigned char>(text_[at_]);
      if (byte == '"') {
        ++at_;
        return true;
      }
      if (byte == '\\') {
        if (!parse_escape(out)) {
          return false;
        }
      } else if (byte < 0x20) {
        return fail("a control character in a string must be escaped");
      } else {
        const std::size_t length = utf8_length_at(text_, at_);
        if (length == 0) {
          return fail("the text is not valid UTF-8");
        }
        out.append(text_, at_, length);
        at_ += length;
      }
    }
    return fail("the string does not end");
  }

  bool parse_escape(std::string& out) {
    ++at_;  // backslash
    static constexpr std::string_view kEscapes = "\"\\/bfnrt";
    static constexpr std::string_view kCharacters = "\"\\/\b\f\n\r\t";
    const std::size_t simple =
        at_ < text_.size() ? kEscapes.find(text_[at_]) : std::string_view::npos;
    if (simple != std::string_view::npos) {
      out.push_back(kCharacters[simple]);
      ++at_;
      return true;
    }
    if (peek() != 'u') {
      return fail("unknown escape; expected one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX");
    }
    ++at_;
    std::uint32_t unit = 0;
    if (!parse_hex4(unit)) {
      return false;
    }
    if (unit >= 0xD800 && unit < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t second = at_;
      at_ += 2;
      std::uint32_t low = 0;
      if (!parse_hex4(low)) {
        return false;
      }
      if (low >= 0xDC00 && low < 0xE000) {
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
      } else {
        at_ = second;  // a lone surrogate, and then another escape
      }
    }
    append_utf8(out, unit);
    return true;
  }

  bool parse_hex4(std::uint32_t& unit) {
    unit = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      std::uint32_t digit = 0;
      if (c >= '0' && c <= '9') {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a') + 10;
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A') + 10;
      } else {
        return fail("expected four hexadecimal digits after \\u");
      }
      unit = unit * 16 + digit;
    }
    return true;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::string message_;
};

}  // namespace

std::size_t json_number_length(std::string_view text) {
  const auto digits_from = [text](std::size_t at) {
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
      ++at;
    }
    return at;
  };
  const auto is = [text](std::size_t at, std::string_view any) {
    return at < text.size() && any.find(text[at]) != std::string_view::npos;
  };
  const std::size_t start = is(0, "-") ? 1 : 0;
  std::size_t end = is(start, "0") ? start + 1 : digits_from(start);
  if (end == start) {
    return 0;
  }
  if (is(end, ".") && digits_from(end + 1) > end + 1) {
    end = digits_from(end + 1);
  }
  if (is(end, "eE")) {
    const std::size_t exponent = end + (is(end + 1, "+-") ? 2 : 1);
    if (digits_from(exponent) > exponent) {
      end = digits_from(exponent);
    }
  }
  return end;
}

JsonParseResult parse_json_value(std::string_view text) { return Parser(text).parse(); }

}  // namespace needle
