// The characters of a JSON string, byte by byte, and which code points a begun one may become.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace needle {

// Behind the opening quote. Accepts what a JSON writer spells: printable ASCII, UTF-8, the short
// escapes, \u with lower-case digits for control characters and from U+0080 on (pairs of surrogates
// whole).
struct StringReader {
  enum class Phase : std::uint8_t {
    kText,
    kUtf8,     // `left` bytes of a character are to come
    kEscape,   // behind a backslash
    kHex,      // `left` digits of \uXXXX are to come
    kPair,     // behind a high surrogate: \ is next
    kPairU,    // u is next
    kPairHex,  // `left` digits of the low surrogate are to come
  };
  Phase phase = Phase::kText;
  std::uint8_t left = 0;
  std::uint32_t value =
      0;  // the bits or digits so far; with a pair ten bits of the first half above

  friend bool operator==(const StringReader&, const StringReader&) = default;
};

namespace string_reader {

enum class Event { kDead, kInside, kCharacter, kQuote };

// Code points that a begun character may become, and how many bytes are to come before it is whole.
struct Interval {
  std::uint32_t first = 1, last = 0;
  std::int32_t bytes = 0;
  bool empty() const { return first > last; }
};
using Reach = std::array<Interval, 7>;

constexpr std::uint32_t kHighSurrogate = 0xD800;
constexpr std::uint32_t kLowSurrogate = 0xDC00;

// What the character that `reader` is inside of may become; all empty between characters.
inline Reach reach(const StringReader& reader) {
  using Phase = StringReader::Phase;
  Reach reach;
  const std::int32_t left = reader.left;
  const auto from_digits = [left](std::uint32_t digits, int bits) {
    return Interval{digits << (bits * left), ((digits + 1) << (bits * left)) - 1, left};
  };
  const auto clipped = [](Interval a, std::uint32_t first, std::uint32_t last) {
    return Interval{std::max(a.first, first), std::min(a.last, last), a.bytes};
  };
  const auto pairs = [](std::uint32_t first, std::uint32_t last, std::int32_t bytes) {
    return Interval{0x10000 + (first << 10), 0x10000 + (last << 10) + 0x3FF, bytes};
  };
  switch (reader.phase) {
    case Phase::kText:
      break;
    case Phase::kUtf8: {
      constexpr std::array<std::uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
      constexpr std::array<std::uint32_t, 5> kMost = {0, 0, 0x7FF, 0xFFFF, 0x10FFFF};
      const std::uint32_t length = reader.value >> 28;
      reach[0] = clipped(from_digits(reader.value & 0xFFFFFFF, 6), kLeast[length], kMost[length]);
      break;
    }
    case Phase::kEscape:
      reach = {{{'\b', '\n', 1},
                {'\f', '\r', 1},
                {'"', '"', 1},
                {'\\', '\\', 1},
                {0, 0x1F, 5},
                {0x80, 0xFFFF, 5},
                {0x10000, 0x10FFFF, 11}}};
      break;
    case Phase::kHex: {
      const Interval all = from_digits(reader.value, 4);
      reach[0] = clipped(all, 0, 0x1F);
      reach[1] = clipped(all, 0x80, kHighSurrogate - 1);
      reach[2] = clipped(all, 0xE000, 0xFFFF);
      const Interval high = clipped(all, kHighSurrogate, kLowSurrogate - 1);
      if (!high.empty()) {
        reach[3] = pairs(high.first - kHighSurrogate, high.last - kHighSurrogate, left + 6);
      }
      break;
    }
    case Phase::kPair:
      reach[0] = pairs(reader.value, reader.value, 6);
      break;
    case Phase::kPairU:
      reach[0] = pairs(reader.value, reader.value, 5);
      break;
    case Phase::kPairHex: {
      const Interval low = clipped(from_digits(reader.value & 0xFFFF, 4), kLowSurrogate, 0xDFFF);
      const std::uint32_t first_of_pair = 0x10000 + (reader.value >> 16 << 10);
      if (!low.empty()) {
        reach[0] = {first_of_pair + low.first - kLowSurrogate,
                    first_of_pair + low.last - kLowSurrogate, left};
      }
      break;
    }
  }
  return reach;
}

// kCharacter: `code_point` is whole and the reader is between characters again.
inline Event advance(StringReader& reader, std::uint8_t byte, std::uint32_t& code_point) {
  using Phase = StringReader::Phase;
  const auto hexadecimal = [byte]() -> int {
    return byte >= '0' && byte <= '9'   ? byte - '0'
           : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
                                        : -1;
  };
  const auto whole = [&](std::uint32_t c) {
    code_point = c;
    reader = {};
    return Event::kCharacter;
  };
  const auto is_possible = [&] {
    return std::ranges::any_of(reach(reader), [](const Interval& i) { return !i.empty(); });
  };
  switch (reader.phase) {
    case Phase::kText:
      if (byte == '"') {
        return Event::kQuote;
      }
      if (byte == '\\') {
        reader.phase = Phase::kEscape;
        return Event::kInside;
      }
      if (byte < 0x20) {
        return Event::kDead;
      }
      if (byte < 0x80) {
        return whole(byte);
      }
      if (byte < 0xC2 || byte > 0xF4) {
        return Event::kDead;
      }
      reader.phase = Phase::kUtf8;
      reader.left = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
      reader.value = (byte & (0x3Fu >> reader.left)) | ((reader.left + 1u) << 28);
      return Event::kInside;
    case Phase::kUtf8: {
      if ((byte & 0xC0) != 0x80) {
        return Event::kDead;
      }
      const std::uint32_t bits = ((reader.value & 0xFFFFFFF) << 6) | (byte & 0x3Fu);
      if (--reader.left == 0) {
        const bool surrogate = bits >= kHighSurrogate && bits <= 0xDFFF;
        return surrogate ? Event::kDead : whole(bits);
      }
      reader.value = (reader.value & 0xF0000000) | bits;
      return is_possible() ? Event::kInside : Event::kDead;
    }
    case Phase::kEscape:
      switch (byte) {
        case 'n':
          return whole('\n');
        case 't':
          return whole('\t');
        case 'r':
          return whole('\r');
        case 'b':
          return whole('\b');
        case 'f':
          return whole('\f');
        case '"':
        case '\\':
          return whole(byte);
        case 'u':
          reader = {.phase = Phase::kHex, .left = 4};
          return Event::kInside;
        default:
          return Event::kDead;
      }
    case Phase::kHex:
    case Phase::kPairHex: {
      const int digit = hexadecimal();
      if (digit < 0) {
        return Event::kDead;
      }
      const bool pair = reader.phase == Phase::kPairHex;
      const std::uint32_t high = pair ? reader.value >> 16 : 0;
      const std::uint32_t digits =
          ((reader.value & 0xFFFF) << 4 | static_cast<std::uint32_t>(digit)) & 0xFFFF;
      reader.value = high << 16 | digits;
      if (--reader.left > 0) {
        return is_possible() ? Event::kInside : Event::kDead;
      }
      if (pair) {
        const bool low = digits >= kLowSurrogate && digits <= 0xDFFF;
        return low ? whole(0x10000 + (high << 10) + (digits - kLowSurrogate)) : Event::kDead;
      }
      if (digits >= kHighSurrogate && digits < kLowSurrogate) {
        reader = {.phase = Phase::kPair, .left = 0, .value = digits - kHighSurrogate};
        return Event::kInside;
      }
      const bool written =
          digits < 0x20 || (digits >= 0x80 && !(digits >= kLowSurrogate && digits <= 0xDFFF));
      return written ? whole(digits) : Event::kDead;
    }
    case Phase::kPair:
      reader.phase = Phase::kPairU;
      return byte == '\\' ? Event::kInside : Event::kDead;
    case Phase::kPairU:
      reader = {.phase = Phase::kPairHex, .left = 4, .value = reader.value << 16};
      return byte == 'u' ? Event::kInside : Event::kDead;
  }
  return Event::kDead;
}

}  // namespace string_reader
}  // namespace needle
