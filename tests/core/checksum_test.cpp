#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Vectors of FIPS 180-4 and its companion examples.
TEST(Sha256Test, MatchesPublishedVectors) {
  EXPECT_EQ(sha256_hex(std::string_view()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, PadsEveryLengthAroundABlock) {
  // From Python's hashlib: the hash of the joined hexadecimal hashes of "x" * n, n from 50 to 70.
  std::string all;
  for (std::size_t n = 50; n <= 70; ++n) {
    all += sha256_hex(std::string(n, 'x'));
  }
  EXPECT_EQ(sha256_hex(all), "9ce15c45abd7dd9cb16ae1dcc638ffab9da06e3736bcf3e2eb14fd69e55206e3");
}

TEST(Sha256Test, OfAFileIsThatOfItsBytes) {
  const test::TemporaryFolder folder;
  write_file_atomic(folder / "a", "abc");
  EXPECT_EQ(sha256_file(folder / "a"), sha256_hex("abc"));
  write_file_atomic(folder / "empty", "");
  EXPECT_EQ(sha256_file(folder / "empty"), sha256_hex(""));
}

// Vectors of RFC 3720, appendix B.4.
TEST(Crc32cTest, MatchesPublishedVectors) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
  EXPECT_EQ(crc32c({}), 0u);
}

TEST(Crc32cTest, GoesOnFromASeed) {
  const std::string text = "a text that is longer than two times eight bytes";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const std::uint32_t first = crc32c(bytes_of(std::string_view(text).substr(0, cut)));
    EXPECT_EQ(crc32c(bytes_of(std::string_view(text).substr(cut)), first), crc32c(bytes_of(text)));
  }
}

TEST(Crc32cTest, LongTextsAreDividedBitByBit) {
  const auto by_definition = [](std::span<const std::byte> bytes) {
    std::uint32_t crc = 0xFFFFFFFF;
    for (const std::byte byte : bytes) {
      crc ^= std::to_integer<std::uint32_t>(byte);
      for (int bit = 0; bit < 8; ++bit) {
        crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
      }
    }
    return ~crc;
  };
  std::vector<std::byte> bytes(40000);
  std::uint32_t state = 7;
  for (std::byte& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<std::byte>(state >> 24);
  }
  for (const std::size_t size : {12287u, 12288u, 12289u, 12296u, 24575u, 24577u, 36864u, 39999u}) {
    for (const std::size_t begin : {0u, 1u}) {
      const auto part = std::span(bytes).subspan(begin, size);
      EXPECT_EQ(crc32c(part), by_definition(part)) << size << " from " << begin;
      EXPECT_EQ(crc32c(part.subspan(5000), crc32c(part.first(5000))), by_definition(part));
    }
  }
}

}  // namespace
}  // namespace needle
