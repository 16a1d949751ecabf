#include "needle/calls/json_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::string_view kNan = "NaN";
constexpr std::string_view kInfinity = "Infinity";
constexpr std::string_view kMinusInfinity = "-Infinity";

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

}  // namespace

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
    if (members_.empty()) {
      members_.reserve(kUsualMembers);
    }
    members_.emplace_back(std::string(key), std::move(value));
  }
}

std::size_t json_plain_length(std::string_view text) {
  const auto special = std::ranges::find_if(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte >= 0x7F || byte == '"' || byte == '\\';
  });
  return static_cast<std::size_t>(special - text.begin());
}

bool JsonValue::operator==(const JsonValue& other) const {
  if (kind_ != other.kind_) {
    return false;
  }
  const bool nested = is_array() || is_object();
  return nested ? write_canonical(*this) == write_canonical(other)
                : bool_ == other.bool_ && text_ == other.text_;
}

}  // namespace needle
