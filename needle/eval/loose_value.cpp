#include "needle/eval/loose_value.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

#include "needle/calls/strip.h"
#include "needle/calls/utf8.h"

namespace needle {
namespace {

// Latin, Greek, Cyrillic and Armenian: the alphabets with letter cases that are in daily use.
std::uint32_t lower_case(std::uint32_t c) {
  const auto within = [c](std::uint32_t first, std::uint32_t last) {
    return c >= first && c <= last;
  };
  if (within('A', 'Z') || (within(0xC0, 0xDE) && c != 0xD7) ||
      (within(0x391, 0x3AB) && c != 0x3A2) || within(0x410, 0x42F)) {
    return c + 32;
  }
  if (within(0x400, 0x40F)) {
    return c + 80;
  }
  if (within(0x531, 0x556)) {
    return c + 48;
  }
  if (c == 0x178) {
    return 0xFF;
  }
  if (within(0x139, 0x148) || within(0x179, 0x17E)) {  // capitals are odd here
    return c % 2 == 1 ? c + 1 : c;
  }
  if (within(0x100, 0x137) || within(0x14A, 0x177) || within(0x460, 0x481) ||
      within(0x48A, 0x4BF) || within(0x4D0, 0x52F) || within(0x1E00, 0x1E95) ||
      within(0x1EA0, 0x1EFF)) {
    return c % 2 == 0 && c != 0x130 ? c + 1 : c;
  }
  switch (c) {  // Greek with accents
    case 0x386:
      return 0x3AC;
    case 0x388:
    case 0x389:
    case 0x38A:
      return c + 37;
    case 0x38C:
      return 0x3CC;
    case 0x38E:
    case 0x38F:
      return c + 63;
    default:
      return c;
  }
}

std::string to_lower(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length_at(text, i);
    if (length == 0) {
      lower += text[i++];
      continue;
    }
    append_utf8(lower, lower_case(utf8_code_point_at(text, i)));
    i += length;
  }
  return lower;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// What Python's float() reads of an ASCII text: a sign, digits with single underscores between
// them, a fraction, an exponent; or inf, infinity, nan in any case.
std::optional<double> python_float(std::string_view text) {
  std::string plain = to_lower(strip_edges(text));
  std::string_view rest = plain;
  if (rest.starts_with('+') || rest.starts_with('-')) {
    rest.remove_prefix(1);
  }
  if (rest == "inf" || rest == "infinity" || rest == "nan") {
    return std::strtod(plain.c_str(), nullptr);
  }
  std::size_t i = 0;
  const auto read_digits = [&] {
    const std::size_t begin = i;
    while (i < rest.size() &&
           (is_digit(rest[i]) || (rest[i] == '_' && i > begin && rest[i - 1] != '_' &&
                                  i + 1 < rest.size() && is_digit(rest[i + 1])))) {
      ++i;
    }
    return i > begin;
  };
  bool digits = read_digits();
  if (i < rest.size() && rest[i] == '.') {
    ++i;
    digits = read_digits() || digits;
  }
  if (!digits) {
    return std::nullopt;
  }
  if (i < rest.size() && rest[i] == 'e') {
    ++i;
    if (i < rest.size() && (rest[i] == '+' || rest[i] == '-')) {
      ++i;
    }
    if (!read_digits()) {
      return std::nullopt;
    }
  }
  if (i != rest.size()) {
    return std::nullopt;
  }
  std::erase(plain, '_');
  return std::strtod(plain.c_str(), nullptr);
}

std::string python_float_text(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value > 0 ? "inf" : "-inf";
  }
  return JsonValue::number(value).number_text();
}

}  // namespace

JsonValue loosen_value(const JsonValue& value) {
  if (value.kind() == JsonValue::Kind::kFloat) {
    return JsonValue::string(python_float_text(value.as_double()));
  }
  if (!value.is_string()) {
    return value;
  }
  if (const std::optional<double> number = python_float(value.as_string())) {
    return JsonValue::string(python_float_text(*number));
  }
  std::string text = to_lower(strip_edges(value.as_string()));
  for (const std::string_view opening : {"today at ", "at "}) {
    if (text.starts_with(opening)) {
      text.erase(0, opening.size());
      break;
    }
  }
  return JsonValue::string(std::move(text));
}

}  // namespace needle
