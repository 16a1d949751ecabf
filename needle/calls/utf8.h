// UTF-8 one character at a time, for text that may be broken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace needle {

// Bytes of the well-formed character that begins at `position`, or 0 if there is none (truncated,
// overlong, a surrogate, above U+10FFFF, or position at the end).
std::size_t utf8_length_at(std::string_view text, std::size_t position);

// The character at `position`, which must begin a well-formed one.
std::uint32_t utf8_code_point_at(std::string_view text, std::size_t position);

bool is_valid_utf8(std::string_view text);

// Surrogates are written as three bytes too (WTF-8); a caller that minds must check.
void append_utf8(std::string& text, std::uint32_t code_point);

// Every byte that is not part of a well-formed character becomes U+FFFD, as SentencePiece does when
// decoding.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace needle
