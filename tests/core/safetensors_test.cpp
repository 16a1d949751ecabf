#include "needle/core/safetensors.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using test::TemporaryFolder;

// A file with this header, its length in front and `data_bytes` bytes behind it.
std::string file_of(std::string_view header, std::size_t data_bytes) {
  std::string file;
  for (std::size_t i = 0; i < 8; ++i) {
    file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  }
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) {
    file += static_cast<char>(i);
  }
  return file;
}

// Without waiting for the disk, which also happens when an existing file is cut and written again.
void write_quickly(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// "accepted", or the message of the refusal. Any other exception fails the test.
std::string outcome(const TemporaryFolder& folder, std::string_view bytes) {
  write_quickly(folder / "t.safetensors", bytes);
  try {
    const SafetensorsFile file(folder / "t.safetensors");
    for (const auto& [name, tensor] : file.tensors()) {
      EXPECT_EQ(tensor.bytes.size(),
                static_cast<std::size_t>(tensor.element_count()) * dtype_size(tensor.dtype));
    }
    return "accepted";
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("t.safetensors"));
    return error.what();
  }
}

std::span<const std::byte> bytes_of(const auto& values) { return std::as_bytes(std::span(values)); }

TEST(SafetensorsTest, RoundTripsEveryDtypeAndShape) {
  const TemporaryFolder folder;
  std::vector<std::byte> data(240);
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = static_cast<std::byte>(i * 7);
  }
  std::map<std::string, TensorView, std::less<>> tensors;
  for (const auto& [dtype, name] : kDtypeNames.entries) {
    const std::span<const std::byte> bytes(data);
    const std::size_t size = dtype_size(dtype);
    tensors["scalar/" + std::string(name)] = {
        .dtype = dtype, .shape = {}, .bytes = bytes.subspan(1, size)};
    tensors["empty/" + std::string(name)] = {.dtype = dtype, .shape = {3, 0, 2}, .bytes = {}};
    tensors["matrix/" + std::string(name)] = {
        .dtype = dtype, .shape = {2, 3, 5}, .bytes = bytes.subspan(0, 30 * size)};
  }
  const std::map<std::string, std::string, std::less<>> metadata = {{"format", "pt"},
                                                                    {"é", "\"\n"}};
  write_safetensors(folder / "a.safetensors", tensors, metadata);
  const SafetensorsFile file(folder / "a.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const TensorView& read = file.at(name);
    EXPECT_EQ(read.dtype, tensor.dtype);
    EXPECT_EQ(read.shape, tensor.shape);
    EXPECT_TRUE(
        std::equal(read.bytes.begin(), read.bytes.end(), tensor.bytes.begin(), tensor.bytes.end()))
        << name;
  }
  const std::string bytes = read_file(folder / "a.safetensors");
  std::uint64_t header = 0;
  for (std::size_t i = 8; i > 0; --i) {
    header = header << 8 | static_cast<unsigned char>(bytes[i - 1]);
  }
  EXPECT_EQ((8 + header) % 64, 0u);
}

TEST(SafetensorsTest, AFileMayHoldNothing) {
  const TemporaryFolder folder;
  write_safetensors(folder / "a.safetensors", {});
  EXPECT_TRUE(SafetensorsFile(folder / "a.safetensors").tensors().empty());
}

TEST(SafetensorsTest, RefusesAnInconsistentHeader) {
  const TemporaryFolder folder;
  const auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string(R"({"dtype":")") + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}";
  };
  const std::string good = tensor("F32", "[2]", "[0,8]");
  ASSERT_EQ(outcome(folder, file_of("{\"a\":" + good + "}", 8)), "accepted");
  ASSERT_EQ(outcome(folder, file_of("{\"a\":" + good + "}   ", 8)), "accepted");

  struct Case {
    std::string header;
    std::size_t data_bytes;
    const char* reason;
  };
  const std::vector<Case> cases = {
      {"{\"a\":" + good + "}", 7, "outside"},   // truncated
      {"{\"a\":" + good + "}", 9, "end at 8"},  // too long
      {"{\"a\":" + good + ",\"a\":" + good + "}", 8, "twice"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
       "twice"},
      {"{\"a\":" + tensor("F32", "[2]", "[8,16]") + "}", 16, "hole"},
      {"{\"a\":" + good + ",\"b\":" + tensor("F32", "[2]", "[4,12]") + "}", 12, "overlap"},
      {"{\"a\":" + good + ",\"b\":" + good + "}", 8, "overlap"},
      {"{\"a\":" + tensor("F32", "[3]", "[0,8]") + "}", 8, "needs 12 bytes"},
      {"{\"a\":" + tensor("F32", "[2]", "[8,0]") + "}", 8, "outside"},
      {"{\"a\":" + tensor("F32", "[2]", "[0,8,8]") + "}", 8, "outside"},
      {"{\"a\":" + tensor("F32", "[2]", "[0,18446744073709551615]") + "}", 8, "integers"},
      {"{\"a\":" + tensor("F32", "[2]", "[-1,7]") + "}", 8, "integers"},
      {"{\"a\":" + tensor("F32", "[2.0]", "[0,8]") + "}", 8, "integers"},
      {"{\"a\":" + tensor("F32", "[-2,-1]", "[0,8]") + "}", 8, "integers"},
      {"{\"a\":" + tensor("F32", "\"2\"", "[0,8]") + "}", 8, "not a list"},
      {"{\"a\":" + tensor("F32", "[4294967296,4294967296]", "[0,0]") + "}", 0, "too many"},
      {"{\"a\":" + tensor("F32", "[4611686018427387906]", "[0,8]") + "}", 8, "too many"},
      {"{\"a\":" + tensor("F33", "[2]", "[0,8]") + "}", 8, "dtype"},
      {"{\"a\":" + tensor("f32", "[2]", "[0,8]") + "}", 8, "dtype"},
      {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8, "exactly"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, "exactly"},
      {R"({"a":{"dtype":5,"shape":[2],"data_offsets":[0,8]}})", 8, "exactly"},
      {R"({"a":5})", 8, "exactly"},
      {R"({"__metadata__":5})", 0, "not an object"},
      {R"({"__metadata__":{"a":5}})", 0, "not a string"},
      {R"({"a":{"dtype":{"x":{"y":{"z":{}}}},"shape":[2],"data_offsets":[0,8]}})", 8, "deep"},
      {"[]", 0, "not a JSON object"},
      {" {}", 0, "not a JSON object"},
      {"", 0, "not a JSON object"},
      {"{", 0, "JSON"},
      {std::string("{\"a\xff\":1}"), 0, "JSON"},
      {std::string(100'000, '['), 0, "JSON"},
      {"{\"a\":" + std::string(100'000, '['), 0, "deep"},
  };
  for (const Case& bad : cases) {
    EXPECT_THAT(outcome(folder, file_of(bad.header, bad.data_bytes)),
                testing::HasSubstr(bad.reason))
        << bad.header.substr(0, 200);
  }
  const std::string shape_of_100 = "[" + std::string("1") + [] {
    std::string ones;
    for (int i = 0; i < 99; ++i) {
      ones += ",1";
    }
    return ones;
  }() + "]";
  EXPECT_THAT(
      outcome(folder, file_of("{\"a\":" + tensor("U8", shape_of_100.c_str(), "[0,1]") + "}", 1)),
      testing::HasSubstr("100 dimensions"));
}

TEST(SafetensorsTest, RefusesAWrongHeaderLength) {
  const TemporaryFolder folder;
  EXPECT_NE(outcome(folder, ""), "accepted");
  EXPECT_NE(outcome(folder, "1234567"), "accepted");
  EXPECT_NE(outcome(folder, std::string(8, '\0')), "accepted");
  EXPECT_NE(outcome(folder, std::string(8, '\xff') + "{}"), "accepted");
  EXPECT_NE(outcome(folder, std::string("\x03\0\0\0\0\0\0\0{}", 10)), "accepted");
  EXPECT_EQ(outcome(folder, std::string("\x02\0\0\0\0\0\0\0{}", 10)), "accepted");
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.0f, 2.0f, 3.0f};
  write_safetensors(folder / "a",
                    {{"x", {.dtype = Dtype::kF32, .shape = {3}, .bytes = bytes_of(values)}}});
  const std::string whole = read_file(folder / "a");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(outcome(folder, whole.substr(0, size)), "accepted") << size;
  }
}

// Whatever bytes change, a file is refused with a message or its views lie within the file.
TEST(SafetensorsTest, ChangedBytesNeverLeadOutside) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.0f, 2.0f, 3.0f, 4.0f};
  write_safetensors(
      folder / "a",
      {{"x", {.dtype = Dtype::kF32, .shape = {3}, .bytes = bytes_of(values).first(12)}},
       {"y", {.dtype = Dtype::kF16, .shape = {1, 2}, .bytes = bytes_of(values).first(4)}}},
      {{"k", "v"}});
  const std::string whole = read_file(folder / "a");
  Random random(7);
  std::size_t refused = 0;
  constexpr std::size_t kTrials = 3000;
  constexpr std::string_view kLikely = "0123456789-.,:[]{}\"eF\\ \xff";
  for (std::size_t trial = 0; trial < kTrials; ++trial) {
    std::string changed = whole;
    for (std::uint32_t i = random.below(3) + 1; i > 0; --i) {
      changed[random.below(static_cast<std::uint32_t>(changed.size()))] =
          kLikely[random.below(kLikely.size())];
    }
    write_quickly(folder / "t.safetensors", changed);
    try {
      const SafetensorsFile read(folder / "t.safetensors");
      std::size_t total = 0;
      for (const auto& [name, tensor] : read.tensors()) {
        total += tensor.bytes.size();
      }
      EXPECT_EQ(total, 16u);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, kTrials / 4);  // most of the file is header
  EXPECT_LT(refused, kTrials);
}

TEST(SafetensorsTest, AMissingTensorNamesWhatIsThere) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.0f};
  const TensorView tensor{.dtype = Dtype::kF32, .shape = {1}, .bytes = bytes_of(values)};
  write_safetensors(folder / "a", {{"encoder.norm.scale", tensor}, {"embedding", tensor}});
  const SafetensorsFile file(folder / "a");
  EXPECT_TRUE(file.contains("embedding"));
  EXPECT_FALSE(file.contains("embeddin"));
  const auto message_of = [&](std::string_view name) -> std::string {
    try {
      file.at(name);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "found";
  };
  EXPECT_THAT(message_of("encoder.norm.scales"),
              testing::HasSubstr("did you mean \"encoder.norm.scale\""));
  EXPECT_THAT(message_of("xyz"), testing::HasSubstr("it holds embedding, encoder.norm.scale"));
}

TEST(SafetensorsTest, WritingChecksSizesAndNames) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.0f, 2.0f};
  const auto write = [&](const char* name, std::vector<std::int64_t> shape) {
    write_safetensors(
        folder / "a",
        {{name, {.dtype = Dtype::kF32, .shape = std::move(shape), .bytes = bytes_of(values)}}});
  };
  EXPECT_THROW(write("x", {3}), Error);
  EXPECT_THROW(write("x", {-1, -2}), Error);
  EXPECT_THROW(write("__metadata__", {2}), Error);
  EXPECT_THROW(write("\xff", {2}), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsTest, SurvivesAMove) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.0f, 2.0f};
  write_safetensors(folder / "a",
                    {{"x", {.dtype = Dtype::kF32, .shape = {2}, .bytes = bytes_of(values)}}});
  SafetensorsFile file(folder / "a");
  const TensorView view = file.at("x");
  const SafetensorsFile moved(std::move(file));
  EXPECT_EQ(to_floats(view), values);
  EXPECT_EQ(to_floats(moved.at("x")), values);
}

TEST(WideningTest, KeepsEveryValueOrRefuses) {
  const std::vector<std::int8_t> small = {-128, 0, 127};
  const std::vector<std::int16_t> medium = {-32768, 5, 32767};
  const std::vector<std::int32_t> wide = {std::numeric_limits<std::int32_t>::min(), 1};
  const std::vector<std::int64_t> huge = {1};
  const std::vector<double> doubles = {1.0};
  const TensorView i8{.dtype = Dtype::kI8, .shape = {3}, .bytes = bytes_of(small)};
  const TensorView u8{.dtype = Dtype::kU8, .shape = {3}, .bytes = bytes_of(small)};
  const TensorView i16{.dtype = Dtype::kI16, .shape = {3}, .bytes = bytes_of(medium)};
  const TensorView i32{.dtype = Dtype::kI32, .shape = {2}, .bytes = bytes_of(wide)};
  const TensorView i64{.dtype = Dtype::kI64, .shape = {1}, .bytes = bytes_of(huge)};
  const TensorView f64{.dtype = Dtype::kF64, .shape = {1}, .bytes = bytes_of(doubles)};
  EXPECT_EQ(to_ints(i8), (std::vector<std::int32_t>{-128, 0, 127}));
  EXPECT_EQ(to_ints(u8), (std::vector<std::int32_t>{128, 0, 127}));
  EXPECT_EQ(to_ints(i16), (std::vector<std::int32_t>{-32768, 5, 32767}));
  EXPECT_EQ(to_ints(i32), wide);
  EXPECT_EQ(to_floats(i8), (std::vector<float>{-128, 0, 127}));
  EXPECT_EQ(to_floats(i16), (std::vector<float>{-32768, 5, 32767}));
  EXPECT_THROW(to_ints(i64), FormatError);
  EXPECT_THROW(to_ints(f64), FormatError);
  EXPECT_THROW(to_floats(i32), FormatError);
  EXPECT_THROW(to_floats(f64), FormatError);
  const TensorView wrong{.dtype = Dtype::kI8, .shape = {4}, .bytes = bytes_of(small)};
  EXPECT_THROW(to_ints(wrong), Error);
}

TEST(WideningTest, ReadsUnalignedBytes) {
  std::vector<std::byte> bytes(13);
  const std::array<float, 3> values = {1.5f, -2.0f, 1e-20f};
  std::memcpy(bytes.data() + 1, values.data(), 12);
  const TensorView view{
      .dtype = Dtype::kF32, .shape = {3}, .bytes = std::span<const std::byte>(bytes).subspan(1)};
  EXPECT_EQ(to_floats(view), (std::vector<float>{1.5f, -2.0f, 1e-20f}));
}

// All 65536 halves: decoded against ldexp, and back to themselves.
TEST(HalfTest, DecodesAndEncodesEveryPattern) {
  for (std::uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const int exponent = static_cast<int>(pattern >> 10 & 31);
    const int fraction = static_cast<int>(pattern & 1023);
    const float sign = (pattern & 0x8000) != 0 ? -1.0f : 1.0f;
    const float got = half_to_float(bits);
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(got)) << pattern;
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(got)))) << pattern;
      continue;
    }
    const float expected = exponent == 31 ? std::numeric_limits<float>::infinity()
                           : exponent == 0
                               ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(sign * expected))
        << pattern;
    ASSERT_EQ(float_to_half(got), bits);
  }
}

// Between two neighbouring halves: below the middle down, above it up, the middle to the even one.
TEST(HalfTest, RoundsHalfToEven) {
  for (std::uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = half_to_float(bits);
    const float high = half_to_float(static_cast<std::uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact: float32 has 13 more bits
    ASSERT_EQ(float_to_half(std::nextafter(middle, low)), bits);
    ASSERT_EQ(float_to_half(std::nextafter(middle, high)), bits + 1);
    ASSERT_EQ(float_to_half(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(float_to_half(-middle), (bits % 2 == 0 ? bits : bits + 1) | 0x8000);
  }
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1e30f), 0x7c00);
  EXPECT_EQ(float_to_half(1e-30f), 0);
  EXPECT_EQ(float_to_half(-0.0f), 0x8000);
}

TEST(Bfloat16Test, RoundsHalfToEven) {
  for (std::uint32_t pattern = 0; pattern < 0x7f7f; ++pattern) {
    const auto bits = static_cast<std::uint16_t>(pattern);
    const std::uint32_t wide = pattern << 16;
    ASSERT_EQ(float_to_bfloat16(bfloat16_to_float(bits)), bits);
    ASSERT_EQ(float_to_bfloat16(std::bit_cast<float>(wide | 0x7fff)), bits);
    ASSERT_EQ(float_to_bfloat16(std::bit_cast<float>(wide | 0x8001)), bits + 1);
    ASSERT_EQ(float_to_bfloat16(std::bit_cast<float>(wide | 0x8000)),
              bits % 2 == 0 ? bits : bits + 1);
  }
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::nanf("")))));
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::infinity()), 0x7f80);
  EXPECT_EQ(float_to_bfloat16(-3.4e38f), 0xff80);
}

}  // namespace
}  // namespace needle
