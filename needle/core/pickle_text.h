// Text in a pickle: UTF-8 checked, taken apart and put together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace needle::internal {

// Cut short and made printable for a message.
std::string shown(std::string_view text);

// A code point that UTF-8 can hold: at most 0x10ffff and no surrogate.
bool is_scalar_value(std::uint32_t code);
void append_utf8(std::string& text, std::uint32_t code);

// Reads the code point at `position`, which moves past it; false if there is no UTF-8.
bool next_code_point(std::string_view text, std::size_t& position, std::uint32_t& code);
bool is_utf8(std::string_view text);

}  // namespace needle::internal
