#include "needle/calls/strip.h"

#include <cstddef>
#include <cstdint>

#include "needle/calls/utf8.h"

namespace needle {
namespace {

bool is_space(std::uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

}  // namespace

std::string_view strip_edges(std::string_view text) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t length = utf8_length_at(text, begin);
    if (length == 0 || !is_space(utf8_code_point_at(text, begin))) {
      break;
    }
    begin += length;
  }
  std::size_t end = text.size();
  while (end > begin) {
    std::size_t start =
        end - 1;  // of the last character: back over at most three continuation bytes
    while (start > begin && end - start < 4 &&
           (static_cast<unsigned char>(text[start]) & 0xC0u) == 0x80u) {
      --start;
    }
    if (utf8_length_at(text, start) != end - start || !is_space(utf8_code_point_at(text, start))) {
      break;
    }
    end = start;
  }
  return text.substr(begin, end - begin);
}

}  // namespace needle
