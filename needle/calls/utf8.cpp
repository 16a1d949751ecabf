#include "needle/calls/utf8.h"

#include "needle/core/error.h"

namespace needle {
namespace {

bool is_continuation(unsigned char byte) { return (byte & 0xC0U) == 0x80U; }

}  // namespace

std::size_t utf8_length_at(std::string_view text, std::size_t position) {
  if (position >= text.size()) {
    return 0;
  }
  const auto byte = [&](std::size_t offset) {
    return static_cast<unsigned char>(text[position + offset]);
  };
  const std::size_t left = text.size() - position;
  const unsigned char first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  if (first < 0xC2) {
    return 0;  // a continuation byte, or an overlong two-byte form
  }
  if (first < 0xE0) {
    return left >= 2 && is_continuation(byte(1)) ? 2 : 0;
  }
  if (first < 0xF0) {
    const bool whole = left >= 3 && is_continuation(byte(1)) && is_continuation(byte(2));
    const bool overlong = whole && first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = whole && first == 0xED && byte(1) >= 0xA0;
    return whole && !overlong && !surrogate ? 3 : 0;
  }
  if (first < 0xF5) {
    const bool whole = left >= 4 && is_continuation(byte(1)) && is_continuation(byte(2)) &&
                       is_continuation(byte(3));
    const bool overlong = whole && first == 0xF0 && byte(1) < 0x90;
    const bool above_unicode = whole && first == 0xF4 && byte(1) >= 0x90;
    return whole && !overlong && !above_unicode ? 4 : 0;
  }
  return 0;
}

std::uint32_t utf8_code_point_at(std::string_view text, std::size_t position) {
  const std::size_t length = utf8_length_at(text, position);
  NEEDLE_CHECK(length > 0, "no UTF-8 character begins at byte {}", position);
  const auto first = static_cast<unsigned char>(text[position]);
  if (length == 1) {
    return first;
  }
  std::uint32_t code_point = first & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (static_cast<unsigned char>(text[position + i]) & 0x3FU);
  }
  return code_point;
}

bool is_valid_utf8(std::string_view text) {
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t length = utf8_length_at(text, position);
    if (length == 0) {
      return false;
    }
    position += length;
  }
  return true;
}

void append_utf8(std::string& text, std::uint32_t code_point) {
  const auto push = [&text](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    push(code_point);
  } else if (code_point < 0x800) {
    push(0xC0 | (code_point >> 6));
    push(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    push(0xE0 | (code_point >> 12));
    push(0x80 | ((code_point >> 6) & 0x3F));
    push(0x80 | (code_point & 0x3F));
  } else {
    NEEDLE_CHECK(code_point <= 0x10FFFF, "{} is not a Unicode code point", code_point);
    push(0xF0 | (code_point >> 18));
    push(0x80 | ((code_point >> 12) & 0x3F));
    push(0x80 | ((code_point >> 6) & 0x3F));
    push(0x80 | (code_point & 0x3F));
  }
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t length = utf8_length_at(text, position);
    if (length == 0) {
      append_utf8(valid, 0xFFFD);
      ++position;
    } else {
      valid.append(text, position, length);
      position += length;
    }
  }
  return valid;
}

}  // namespace needle
