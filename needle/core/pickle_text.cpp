#include "needle/core/pickle_text.h"

#include <array>

namespace needle::internal {
namespace {

bool is_surrogate(std::uint32_t code) { return code >= 0xd800 && code <= 0xdfff; }

}  // namespace

std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  std::string result;
  for (const char c : text.substr(0, kLongest)) {
    result += c >= ' ' && c <= '~' ? c : '?';
  }
  return text.size() > kLongest ? result + "..." : result;
}

void append_utf8(std::string& text, std::uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xc0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    text += static_cast<char>(0xe0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    text += static_cast<char>(0xf0 | code >> 18);
    text += static_cast<char>(0x80 | (code >> 12 & 0x3f));
    text += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (code & 0x3f));
  }
}

bool next_code_point(std::string_view text, std::size_t& position, std::uint32_t& code) {
  const auto first = static_cast<unsigned char>(text[position++]);
  if (first < 0x80) {
    code = first;
    return true;
  }
  const int following = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
  if (following == 0 || first > 0xf4) {
    return false;
  }
  code = first & (0x3fu >> following);
  for (int i = 0; i < following; ++i) {
    if (position == text.size() || (static_cast<unsigned char>(text[position]) & 0xc0) != 0x80) {
      return false;
    }
    code = code << 6 | (static_cast<unsigned char>(text[position++]) & 0x3fu);
  }
  constexpr std::array<std::uint32_t, 4> kSmallest = {0, 0x80, 0x800, 0x10000};
  return code >= kSmallest[static_cast<std::size_t>(following)] && is_scalar_value(code);
}

bool is_utf8(std::string_view text) {
  std::uint32_t code = 0;
  for (std::size_t position = 0; position < text.size();) {
    if (!next_code_point(text, position, code)) {
      return false;
    }
  }
  return true;
}

bool is_scalar_value(std::uint32_t code) { return code <= 0x10ffff && !is_surrogate(code); }

}  // namespace needle::internal
