#include "needle/calls/json_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::string_view kNan = "NaN";
constexpr std::string_view kInfinity = "Infinity";
constexpr std::string_view kMinusInfinity = "-Infinity";

std::string_view kind_name(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "a boolean";
    case JsonValue::Kind::kInteger:
      return "an integer";
    case JsonValue::Kind::kFloat:
      return "a float";
    case JsonValue::Kind::kString:
      return "a string";
    case JsonValue::Kind::kArray:
      return "an array";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "?";
}

// Python's float.__repr__: the shortest digits that read back as the same double; positional
// notation while the decimal exponent is in [-4, 16), else d.ddde+XX with at least two exponent
// digits.
std::string python_float_text(double value) {
  if (std::isnan(value)) {
    return std::string(kNan);
  }
  if (std::isinf(value)) {
    return std::string(value > 0 ? kInfinity : kMinusInfinity);
  }
  std::array<char, 64> buffer{};
  const auto written = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                     std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(written.ptr - buffer.data()));
  const std::size_t e = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) {
    return std::string(text);
  }
  const bool negative = text.front() == '-';
  std::string digits;
  for (const char c : text.substr(negative ? 1 : 0, e - (negative ? 1 : 0))) {
    if (c != '.') {
      digits.push_back(c);
    }
  }
  std::string result = negative ? "-" : "";
  if (exponent < 0) {
    result += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    return result;
  }
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return result + digits + std::string(whole - digits.size(), '0') + ".0";
  }
  return result + digits.substr(0, whole) + "." + digits.substr(whole);
}

// The decimal exponent's sign tells an overflow from an underflow.
double out_of_range_value(std::string_view literal) {
  const bool negative = literal.front() == '-';
  long long exponent = 0;
  const std::size_t e = literal.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view digits = literal.substr(e + 1);
    if (digits.front() == '+') {
      digits.remove_prefix(1);
    }
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (read.ec == std::errc::result_out_of_range) {
      exponent =
          digits.front() == '-' ? std::numeric_limits<int>::min() : std::numeric_limits<int>::max();
      exponent *= 1000;  // more than any run of mantissa digits that fits in memory here
    }
  }
  const std::string_view mantissa = literal.substr(0, e);
  const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
  const std::size_t first = mantissa.find_first_of("123456789");
  if (first == std::string_view::npos) {
    return negative ? -0.0 : 0.0;
  }
  const long long magnitude =
      exponent + static_cast<long long>(point) - static_cast<long long>(first);
  const double value = magnitude > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return negative ? -value : value;
}

double parse_double(std::string_view literal) {
  if (literal == kNan) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (literal == kInfinity) {
    return std::numeric_limits<double>::infinity();
  }
  if (literal == kMinusInfinity) {
    return -std::numeric_limits<double>::infinity();
  }
  double value = 0;
  const auto read = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  return read.ec == std::errc::result_out_of_range ? out_of_range_value(literal) : value;
}

// Positions of the members, ordered by key.
std::vector<std::size_t> sorted_by_key(const JsonValue::Object& members) {
  std::vector<std::size_t> order(members.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return members[a].first < members[b].first; });
  return order;
}

}  // namespace

JsonValue JsonValue::boolean(bool value) {
  JsonValue result;
  result.kind_ = Kind::kBool;
  result.bool_ = value;
  return result;
}

JsonValue JsonValue::integer(std::int64_t value) {
  JsonValue result;
  result.kind_ = Kind::kInteger;
  result.text_ = std::to_string(value);
  return result;
}

JsonValue JsonValue::number(double value) {
  JsonValue result;
  result.kind_ = Kind::kFloat;
  result.text_ = python_float_text(value);
  return result;
}

JsonValue JsonValue::number_from_text(std::string_view literal) {
  if (literal == kNan || literal == kInfinity || literal == kMinusInfinity) {
    return number(parse_double(literal));
  }
  const std::size_t length = json_number_length(literal);
  NEEDLE_CHECK(length > 0 && length == literal.size(), "'{}' is not a JSON number", literal);
  if (literal.find_first_of(".eE") != std::string_view::npos) {
    return number(parse_double(literal));
  }
  JsonValue result;
  result.kind_ = Kind::kInteger;
  result.text_ = literal == "-0" ? "0" : std::string(literal);
  return result;
}

JsonValue JsonValue::string(std::string value) {
  JsonValue result;
  result.kind_ = Kind::kString;
  result.text_ = std::move(value);
  return result;
}

JsonValue JsonValue::array(Array items) {
  JsonValue result;
  result.kind_ = Kind::kArray;
  result.items_ = std::move(items);
  return result;
}

JsonValue JsonValue::object(Object members) {
  JsonValue result;
  result.kind_ = Kind::kObject;
  result.members_ = std::move(members);
  return result;
}

bool JsonValue::as_bool() const {
  NEEDLE_CHECK(is_bool(), "expected a boolean, got {}", kind_name(kind_));
  return bool_;
}

std::optional<std::int64_t> JsonValue::as_int64() const {
  NEEDLE_CHECK(is_integer(), "expected an integer, got {}", kind_name(kind_));
  std::int64_t value = 0;
  const auto read = std::from_chars(text_.data(), text_.data() + text_.size(), value);
  return read.ec == std::errc() ? std::optional(value) : std::nullopt;
}

double JsonValue::as_double() const {
  NEEDLE_CHECK(is_number(), "expected a number, got {}", kind_name(kind_));
  return parse_double(text_);
}

const std::string& JsonValue::number_text() const {
  NEEDLE_CHECK(is_number(), "expected a number, got {}", kind_name(kind_));
  return text_;
}

const std::string& JsonValue::as_string() const {
  NEEDLE_CHECK(is_string(), "expected a string, got {}", kind_name(kind_));
  return text_;
}

const JsonValue::Array& JsonValue::items() const {
  NEEDLE_CHECK(is_array(), "expected an array, got {}", kind_name(kind_));
  return items_;
}

JsonValue::Array& JsonValue::items() {
  NEEDLE_CHECK(is_array(), "expected an array, got {}", kind_name(kind_));
  return items_;
}

const JsonValue::Object& JsonValue::members() const {
  NEEDLE_CHECK(is_object(), "expected an object, got {}", kind_name(kind_));
  return members_;
}

JsonValue::Object& JsonValue::members() {
  NEEDLE_CHECK(is_object(), "expected an object, got {}", kind_name(kind_));
  return members_;
}

const JsonValue* JsonValue::find(std::string_view key) const {
  for (const auto& [name, value] : members_) {
    if (name == key) {
      return &value;
    }
  }
  return nullptr;
}

JsonValue* JsonValue::find(std::string_view key) {
  return const_cast<JsonValue*>(std::as_const(*this).find(key));
}

void JsonValue::set(std::string_view key, JsonValue value) {
  NEEDLE_CHECK(is_object(), "expected an object, got {}", kind_name(kind_));
  if (JsonValue* present = find(key)) {
    *present = std::move(value);
  } else {
    members_.emplace_back(std::string(key), std::move(value));
  }
}

bool JsonValue::operator==(const JsonValue& other) const {
  if (kind_ != other.kind_ || bool_ != other.bool_ || text_ != other.text_ ||
      items_ != other.items_ || members_.size() != other.members_.size()) {
    return false;
  }
  const auto mine = sorted_by_key(members_);
  const auto theirs = sorted_by_key(other.members_);
  return std::equal(mine.begin(), mine.end(), theirs.begin(), [&](std::size_t a, std::size_t b) {
    return members_[a].first == other.members_[b].first &&
           members_[a].second == other.members_[b].second;
  });
}

namespace {

constexpr char kHexDigits[] = "0123456789abcdef";

void append_unicode_escape(std::string& out, std::uint32_t code_unit) {
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) {
    out.push_back(kHexDigits[(code_unit >> shift) & 0xF]);
  }
}

// A surrogate in WTF-8 is ED A0..BF 80..BF.
bool is_surrogate_at(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[position + i]); };
  return text.size() - position >= 3 && byte(0) == 0xED && byte(1) >= 0xA0 && byte(1) <= 0xBF &&
         byte(2) >= 0x80 && byte(2) <= 0xBF;
}

void append_code_point(std::string& out, std::uint32_t code_point, JsonEscapes escapes) {
  if (escapes == JsonEscapes::kUtf8) {
    append_utf8(out, code_point);
  } else if (code_point < 0x10000) {
    append_unicode_escape(out, code_point);
  } else {
    append_unicode_escape(out, 0xD800 + ((code_point - 0x10000) >> 10));
    append_unicode_escape(out, 0xDC00 + ((code_point - 0x10000) & 0x3FF));
  }
}

void append_string(std::string& out, std::string_view text, JsonEscapes escapes) {
  out.push_back('"');
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0x80) {
      const std::size_t length = utf8_length_at(text, at);
      if (length > 0) {
        append_code_point(out, utf8_code_point_at(text, at), escapes);
        at += length;
      } else if (is_surrogate_at(text, at)) {
        append_unicode_escape(out, 0xD000U |
                                       ((static_cast<unsigned char>(text[at + 1]) & 0x3FU) << 6) |
                                       (static_cast<unsigned char>(text[at + 2]) & 0x3FU));
        at += 3;
      } else {
        append_code_point(out, 0xFFFD, escapes);
        ++at;
      }
      continue;
    }
    switch (byte) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (byte < 0x20 || (byte == 0x7F && escapes == JsonEscapes::kAscii)) {
          append_unicode_escape(out, byte);
        } else {
          out.push_back(static_cast<char>(byte));
        }
    }
    ++at;
  }
  out.push_back('"');
}

struct WriteStyle {
  std::string_view comma = ",";
  std::string_view colon = ":";
  JsonEscapes escapes = JsonEscapes::kAscii;
  bool sort_keys = false;
};

void append_value(std::string& out, const JsonValue& value, const WriteStyle& style) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      out += "null";
      return;
    case JsonValue::Kind::kBool:
      out += value.as_bool() ? "true" : "false";
      return;
    case JsonValue::Kind::kInteger:
    case JsonValue::Kind::kFloat:
      out += value.number_text();
      return;
    case JsonValue::Kind::kString:
      append_string(out, value.as_string(), style.escapes);
      return;
    case JsonValue::Kind::kArray: {
      std::string_view separator;
      out.push_back('[');
      for (const JsonValue& item : value.items()) {
        out += separator;
        separator = style.comma;
        append_value(out, item, style);
      }
      out.push_back(']');
      return;
    }
    case JsonValue::Kind::kObject: {
      const JsonValue::Object& members = value.members();
      const auto order = style.sort_keys ? sorted_by_key(members) : std::vector<std::size_t>{};
      std::string_view separator;
      out.push_back('{');
      for (std::size_t i = 0; i < members.size(); ++i) {
        const auto& [key, member] = members[style.sort_keys ? order[i] : i];
        out += separator;
        separator = style.comma;
        append_string(out, key, style.escapes);
        out += style.colon;
        append_value(out, member, style);
      }
      out.push_back('}');
      return;
    }
  }
}

std::string write(const JsonValue& value, const WriteStyle& style) {
  std::string out;
  append_value(out, value, style);
  return out;
}

}  // namespace

std::string write_compact(const JsonValue& value, JsonEscapes escapes) {
  return write(value, {.escapes = escapes});
}

std::string write_spaced(const JsonValue& value, JsonEscapes escapes) {
  return write(value, {.comma = ", ", .colon = ": ", .escapes = escapes});
}

std::string write_canonical(const JsonValue& value) { return write(value, {.sort_keys = true}); }

std::string excerpt(const JsonValue& value, std::size_t most_bytes) {
  std::string text = write_compact(value);
  if (text.size() > most_bytes) {
    text.resize(most_bytes);
    text += "...";
  }
  return text;
}

std::string compact_json_text(std::string_view text, JsonEscapes escapes) {
  const JsonParseResult parsed = parse_json_value(text);
  return parsed.value ? write_compact(*parsed.value, escapes) : std::string(text);
}

}  // namespace needle
