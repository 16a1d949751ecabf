// SHA-256 (FIPS 180-4) and CRC-32C (RFC 3720, appendix B.4), declared in needle/core/file.h.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "needle/core/file.h"

namespace needle {
namespace {

constexpr std::array<std::uint32_t, 64> kRoundConstants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::uint32_t byte_at(const std::byte* bytes, std::size_t index) {
  return std::to_integer<std::uint32_t>(bytes[index]);
}

class Sha256 {
 public:
  void update(std::span<const std::byte> bytes) {
    total_ += bytes.size();
    while (!bytes.empty()) {
      const std::size_t count = std::min(bytes.size(), block_.size() - filled_);
      std::memcpy(block_.data() + filled_, bytes.data(), count);
      filled_ += count;
      bytes = bytes.subspan(count);
      if (filled_ == block_.size()) {
        compress();
        filled_ = 0;
      }
    }
  }

  std::string finish() {
    const std::uint64_t bits = total_ * 8;
    constexpr std::array<std::byte, 1> kOne = {std::byte{0x80}};
    constexpr std::array<std::byte, 1> kZero = {std::byte{0}};
    update(kOne);
    while (filled_ != block_.size() - 8) {
      update(kZero);
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
      const std::array<std::byte, 1> byte = {static_cast<std::byte>((bits >> shift) & 0xff)};
      update(byte);
    }
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) {
        text += kDigits[(word >> shift) & 0xf];
      }
    }
    return text;
  }

 private:
  void compress() {
    std::array<std::uint32_t, 64> w;
    for (std::size_t i = 0; i < 16; ++i) {
      const std::byte* p = block_.data() + 4 * i;
      w[i] = byte_at(p, 0) << 24 | byte_at(p, 1) << 16 | byte_at(p, 2) << 8 | byte_at(p, 3);
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t s0 =
          std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRoundConstants[i] + w[i];
      const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + t1;
      d = c;
      c = b;
      b = a;
      a = t1 + t2;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) {
      state_[i] += added[i];
    }
  }

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

// Eight tables: table[k][b] is the remainder of byte b followed by k zero bytes ("slicing by 8").
constexpr auto kCrcTables = [] {
  constexpr std::uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41, bits reversed
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    }
    tables[0][b] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t b = 0; b < 256; ++b) {
      tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xff];
    }
  }
  return tables;
}();

#if defined(__x86_64__) && defined(__GNUC__)
// Three stretches at a time: the instruction takes a word a cycle, its result three. What the
// second and third stretch shift the first's remainder by is a linear map, 32 columns, and as four
// tables.
constexpr std::size_t kStretch = 4096;

using BitMatrix = std::array<std::uint32_t, 32>;
constexpr std::uint32_t times(const BitMatrix& matrix, std::uint32_t bits) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; bits != 0; ++i, bits >>= 1) {
    sum ^= (bits & 1) != 0 ? matrix[i] : 0;
  }
  return sum;
}
constexpr auto kShiftTables = [] {
  BitMatrix shift{};  // by one zero byte
  for (std::size_t i = 0; i < 32; ++i) {
    const std::uint32_t bit = std::uint32_t{1} << i;
    shift[i] = (bit >> 8) ^ kCrcTables[0][bit & 0xff];
  }
  for (std::size_t bytes = 1; bytes < kStretch; bytes *= 2) {
    BitMatrix twice{};
    for (std::size_t i = 0; i < 32; ++i) {
      twice[i] = times(shift, shift[i]);
    }
    shift = twice;
  }
  std::array<std::array<std::uint32_t, 256>, 4> tables{};
  for (std::size_t k = 0; k < 4; ++k) {
    for (std::uint32_t b = 0; b < 256; ++b) {
      tables[k][b] = times(shift, b << (8 * k));
    }
  }
  return tables;
}();
static_assert(std::has_single_bit(kStretch), "the map of a stretch is squared up from a byte's");

std::uint32_t shifted(std::uint32_t crc) {
  return kShiftTables[0][crc & 0xff] ^ kShiftTables[1][(crc >> 8) & 0xff] ^
         kShiftTables[2][(crc >> 16) & 0xff] ^ kShiftTables[3][crc >> 24];
}

std::uint64_t word_at(const std::byte* place) {
  std::uint64_t word;
  std::memcpy(&word, place, sizeof word);
  return word;
}

[[gnu::target("sse4.2")]] std::uint32_t crc_with_instruction(const std::byte* p, std::size_t left,
                                                             std::uint32_t crc) {
  std::uint64_t first = crc;
  for (; left >= 3 * kStretch; left -= 3 * kStretch, p += 3 * kStretch) {
    std::uint64_t second = 0;
    std::uint64_t third = 0;
    for (std::size_t i = 0; i < kStretch; i += 8) {
      first = __builtin_ia32_crc32di(first, word_at(p + i));
      second = __builtin_ia32_crc32di(second, word_at(p + kStretch + i));
      third = __builtin_ia32_crc32di(third, word_at(p + 2 * kStretch + i));
    }
    second ^= shifted(static_cast<std::uint32_t>(first));
    first = third ^ shifted(static_cast<std::uint32_t>(second));
  }
  for (; left >= 8; left -= 8, p += 8) {
    first = __builtin_ia32_crc32di(first, word_at(p));
  }
  crc = static_cast<std::uint32_t>(first);
  for (; left > 0; --left, ++p) {
    crc = __builtin_ia32_crc32qi(crc, std::to_integer<unsigned char>(*p));
  }
  return crc;
}
#endif

}  // namespace

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

std::string sha256_hex(std::string_view bytes) {
  return sha256_hex(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

std::string sha256_file(const std::filesystem::path& path) {
  return sha256_hex(MappedFile(path).bytes());
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed) {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) {
    return ~crc_with_instruction(bytes.data(), bytes.size(), ~seed);
  }
#endif
  std::uint32_t crc = ~seed;
  const std::byte* p = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, p += 8) {
    crc ^= byte_at(p, 0) | byte_at(p, 1) << 8 | byte_at(p, 2) << 16 | byte_at(p, 3) << 24;
    crc = kCrcTables[7][crc & 0xff] ^ kCrcTables[6][(crc >> 8) & 0xff] ^
          kCrcTables[5][(crc >> 16) & 0xff] ^ kCrcTables[4][crc >> 24] ^
          kCrcTables[3][byte_at(p, 4)] ^ kCrcTables[2][byte_at(p, 5)] ^
          kCrcTables[1][byte_at(p, 6)] ^ kCrcTables[0][byte_at(p, 7)];
  }
  for (; left > 0; --left, ++p) {
    crc = (crc >> 8) ^ kCrcTables[0][(crc ^ byte_at(p, 0)) & 0xff];
  }
  return ~crc;
}

}  // namespace needle
