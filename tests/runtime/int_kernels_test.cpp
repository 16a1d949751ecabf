// The integer kernels: every table gives the same bits as the scalar one, which is compared with
// the definition.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/quant/pack.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/int_kv.h"
#include "needle/runtime/kernels/kernels.h"
#include "needle/runtime/layers.h"

namespace needle::runtime {
namespace {

constexpr const char* kNames[] = {"scalar",     "generic",   "avx2", "avx512",
                                  "avx512vnni", "avx512amx", "neon"};

std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> found;
  for (const char* name : kNames) {
    try {
      if (const Kernels& kernels = find_kernels(name); kernels.multiply_int4 != nullptr) {
        found.push_back(&kernels);
      }
    } catch (const ConfigError&) {  // another CPU's
    }
  }
  return found;
}

std::vector<const Kernels*> attending_tables() {
  auto found = tables();
  std::erase_if(found, [](const Kernels* kernels) { return kernels->attend == nullptr; });
  return found;
}

// All tables: norms and packing are in each.
std::vector<const Kernels*> row_tables() {
  std::vector<const Kernels*> found;
  for (const char* name : kNames) {
    try {
      found.push_back(&find_kernels(name));
    } catch (const ConfigError&) {
    }
  }
  return found;
}

std::vector<float> random_floats(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(random.normal());
  }
  return values;
}

// Rows in 8 bits with the memory they need.
struct Codes {
  Codes(const Kernels& kernels, const std::vector<float>& x, std::int64_t rows, std::int64_t in,
        std::int64_t stride)
      : groups((in + 31) / 32),
        count(rows),
        codes(static_cast<std::size_t>(rows * groups * 32), 99),
        scales(static_cast<std::size_t>(rows)),
        offsets(static_cast<std::size_t>(rows * groups)) {
    kernels.quantize({x.data(), rows, stride}, in, {codes.data(), scales.data(), offsets.data()});
  }
  ConstInt8Rows view() const { return {codes.data(), scales.data(), offsets.data(), count}; }

  std::int64_t groups;
  std::int64_t count;
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<std::int32_t> offsets;
};

Int4Matrix view_of(const std::vector<std::byte>& packed, std::int64_t out, std::int64_t in) {
  const auto* const codes = reinterpret_cast<const std::uint8_t*>(packed.data());
  const std::int64_t blocks = row_blocks(out) * column_groups(in);
  return {.in = in,
          .out = out,
          .codes = codes,
          .steps = codes + blocks * 256,
          .units = codes + blocks * 272};
}

struct Case {
  std::int64_t in;
  std::int64_t out;
  std::int64_t rows;
};
constexpr Case kCases[] = {
    {32, 16, 1},   {64, 64, 2},   {7, 5, 1},     {33, 17, 3},  {128, 48, 9},   {129, 31, 4},
    {500, 40, 7},  {512, 72, 1},  {96, 200, 6},  {40, 3, 13},  {64, 20, 16},   {512, 40, 17},
    {128, 33, 32}, {500, 16, 47}, {192, 50, 33}, {96, 40, 35}, {2048, 17, 18}, {2112, 17, 18}};

std::vector<float> product(const Kernels& kernels, const Int4Matrix& w, const Codes& x,
                           std::int64_t stride, std::int64_t split) {
  std::vector<float> y(static_cast<std::size_t>(x.count * stride), 77.0f);
  kernels.multiply_int4(w, x.view(), {y.data(), x.count, stride}, split, row_blocks(w.out));
  kernels.multiply_int4(w, x.view(), {y.data(), x.count, stride}, 0, split);
  return y;
}

TEST(IntKernelsTest, TheScalarProductIsThatOfTheDequantisedNumbers) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{}x{} rows {}", c.in, c.out, c.rows));
    const auto weights = random_floats(static_cast<std::size_t>(c.in * c.out), 3);
    const auto packed = pack_matrix(WeightEncoding::kInt4, weights, c.out, c.in);
    const auto deployed = unpack_matrix(
        {.encoding = WeightEncoding::kInt4, .rows = c.out, .cols = c.in, .bytes = packed});
    const auto x = random_floats(static_cast<std::size_t>(c.rows * c.in), 4);
    const Codes codes(kScalarKernels, x, c.rows, c.in, c.in);
    const auto y = product(kScalarKernels, view_of(packed, c.out, c.in), codes, c.out, 0);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      for (std::int64_t out = 0; out < c.out; ++out) {
        double sum = 0;
        double magnitude = 0;
        double from_floats = 0;
        for (std::int64_t i = 0; i < c.in; ++i) {
          const auto weight =
              static_cast<double>(deployed[static_cast<std::size_t>(out * c.in + i)]);
          const double code = codes.codes[static_cast<std::size_t>(row * codes.groups * 32 + i)] *
                              static_cast<double>(codes.scales[static_cast<std::size_t>(row)]);
          sum += weight * code;
          magnitude += std::abs(weight);
          from_floats += weight * x[static_cast<std::size_t>(row * c.in + i)];
        }
        const auto got = static_cast<double>(y[static_cast<std::size_t>(row * c.out + out)]);
        ASSERT_NEAR(got, sum, 1e-6 * std::abs(sum) + 1e-7 * magnitude);
        // Each activation is off by at most half a step.
        const double step = codes.scales[static_cast<std::size_t>(row)];
        ASSERT_NEAR(got, from_floats, 0.501 * step * magnitude + 1e-6);
      }
    }
  }
}

TEST(IntKernelsTest, EveryTableGivesTheSameBits) {
  for (const Kernels* kernels : tables()) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(format("{} {}x{} rows {}", kernels->name, c.in, c.out, c.rows));
      const auto weights = random_floats(static_cast<std::size_t>(c.in * c.out), 5);
      const auto packed = pack_matrix(WeightEncoding::kInt4, weights, c.out, c.in);
      const Int4Matrix w = view_of(packed, c.out, c.in);
      const std::int64_t stride = c.in + 3;
      const auto x = random_floats(static_cast<std::size_t>(c.rows * stride), 6);
      const Codes expected(kScalarKernels, x, c.rows, c.in, stride);
      const Codes codes(*kernels, x, c.rows, c.in, stride);
      ASSERT_EQ(codes.codes, expected.codes);
      ASSERT_EQ(codes.scales, expected.scales);
      ASSERT_EQ(codes.offsets, expected.offsets);
      const auto y = product(kScalarKernels, w, expected, c.out + 2, 0);
      for (std::int64_t split = 0; split <= row_blocks(c.out); ++split) {
        ASSERT_EQ(product(*kernels, w, codes, c.out + 2, split), y) << split;
      }
      for (std::int64_t row = 0; row < c.rows; ++row) {  // a row alone is as in its batch
        const std::vector<float> alone(x.begin() + row * stride, x.begin() + row * stride + c.in);
        const auto single = product(*kernels, w, Codes(*kernels, alone, 1, c.in, c.in), c.out, 0);
        for (std::int64_t out = 0; out < c.out; ++out) {
          ASSERT_EQ(single[static_cast<std::size_t>(out)],
                    y[static_cast<std::size_t>(row * (c.out + 2) + out)]);
        }
      }
    }
  }
}

// With 16 bits an activation is off by half a step of what its code leaves over, which is half a
// step itself: 1 / 254 of the error of 8 bits.
TEST(IntKernelsTest, ProductsOfSixteenBitsAreNearThoseOfFloatsInEveryTable) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(format("{}x{} rows {}", c.in, c.out, c.rows));
    const auto weights = random_floats(static_cast<std::size_t>(c.in * c.out), 7);
    const auto packed = pack_matrix(WeightEncoding::kInt4, weights, c.out, c.in);
    const auto deployed = unpack_matrix(
        {.encoding = WeightEncoding::kInt4, .rows = c.out, .cols = c.in, .bytes = packed});
    const Int4Matrix w = view_of(packed, c.out, c.in);
    const std::int64_t x_stride = c.in + 3;
    const auto values = random_floats(static_cast<std::size_t>(c.rows * x_stride), 8);
    const std::int64_t stride = c.out + 2;
    std::vector<float> expected;
    for (const Kernels* kernels : tables()) {
      SCOPED_TRACE(kernels->name);
      const Machine machine{.kernels = kernels};
      const ConstRows x{values.data(), c.rows, x_stride};
      Int8Buffer buffer(Numerics::kInt16, c.rows, c.in);
      const Activations rows{
          .x = x, .in = c.in, .codes = buffer.quantize(machine, Numerics::kInt16, x, c.in)};
      for (std::int64_t split = 0; split <= row_blocks(c.out); ++split) {
        std::vector<float> y(static_cast<std::size_t>(c.rows * stride), 77.0f);
        kernels->multiply_int4(w, rows.codes, {y.data(), c.rows, stride}, split, row_blocks(c.out));
        kernels->multiply_int4(w, rows.codes, {y.data(), c.rows, stride}, 0, split);
        expected = expected.empty() ? y : expected;
        ASSERT_EQ(y, expected) << split;
      }
      for (std::int64_t first = 0; first < c.rows; first += 5) {  // some rows of them
        const std::int64_t count = std::min<std::int64_t>(5, c.rows - first);
        std::vector<float> y(static_cast<std::size_t>(count * stride), 77.0f);
        kernels->multiply_int4(w, part_of(rows, first, count).codes, {y.data(), count, stride}, 0,
                               row_blocks(c.out));
        ASSERT_TRUE(std::equal(y.begin(), y.end(), expected.begin() + first * stride));
      }
    }
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const float* const from = values.data() + row * x_stride;
      const double largest = std::abs(*std::max_element(
          from, from + c.in, [](float a, float b) { return std::abs(a) < std::abs(b); }));
      for (std::int64_t out = 0; out < c.out; ++out) {
        double sum = 0;
        double magnitude = 0;
        for (std::int64_t i = 0; i < c.in; ++i) {
          const double weight = deployed[static_cast<std::size_t>(out * c.in + i)];
          sum += weight * from[i];
          magnitude += std::abs(weight);
        }
        const double step = largest / 127;
        ASSERT_NEAR(expected[static_cast<std::size_t>(row * stride + out)], sum,
                    0.501 * step / 254 * magnitude + 3e-7 * std::abs(sum) + 1e-7 * magnitude);
      }
    }
  }
}

// Whatever a file holds: the largest sums fit their 32 bits.
TEST(IntKernelsTest, ExtremesDoNotOverflow) {
  constexpr std::int64_t kGroups = kMaxInt4Inputs / 32;
  for (const std::uint8_t codes_byte : {std::uint8_t{0}, std::uint8_t{255}}) {
    std::vector<std::uint8_t> bytes(kGroups * 272 + 32, 255);
    std::fill_n(bytes.begin(), kGroups * 256, codes_byte);
    for (std::size_t unit = 0; unit < 16; ++unit) {  // 1.0 in bfloat16
      bytes[kGroups * 272 + 2 * unit] = 0x80;
      bytes[kGroups * 272 + 2 * unit + 1] = 0x3F;
    }
    const Int4Matrix w{.in = kMaxInt4Inputs,
                       .out = 16,
                       .codes = bytes.data(),
                       .steps = bytes.data() + kGroups * 256,
                       .units = bytes.data() + kGroups * 272};
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(2 * kMaxInt4Inputs, 127 * sign);
      const double code = codes_byte == 0 ? -8 : 7;
      const auto expected =
          static_cast<float>(code * 255 * 127 * sign * static_cast<double>(kMaxInt4Inputs));
      for (const Kernels* kernels : tables()) {
        const Codes rows(*kernels, x, 2, kMaxInt4Inputs, kMaxInt4Inputs);
        const auto y = product(*kernels, w, rows, 16, 0);
        EXPECT_EQ(std::ranges::count(y, expected), 32) << kernels->name << ' ' << y[0];
      }
    }
  }
}

TEST(IntKernelsTest, QuantisesTiesZerosAndWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels* kernels : tables()) {
    SCOPED_TRACE(kernels->name);
    const std::vector<float> x = {127, -0.5f, 0.5f, 1.5f, 2.5f, -127};
    const Codes ties(*kernels, x, 1, 6, 6);
    EXPECT_EQ(ties.scales[0], 1.0f);
    EXPECT_EQ(std::vector<std::int8_t>(ties.codes.begin(), ties.codes.begin() + 7),
              (std::vector<std::int8_t>{127, 0, 0, 2, 2, -127, 0}));
    EXPECT_EQ(ties.offsets[0], -8 * 4);
    const Codes zeros(*kernels, std::vector<float>(40), 1, 40, 40);
    EXPECT_EQ(zeros.scales[0], 0.0f);
    EXPECT_EQ(std::ranges::count(zeros.codes, 0), 64);
    for (const float bad : {kInfinity, -kInfinity, kNan}) {
      const Codes codes(*kernels, {1, bad, 2}, 1, 3, 3);
      EXPECT_TRUE(std::isnan(codes.scales[0]));
      EXPECT_EQ(std::ranges::count(codes.codes, 0), 32);
    }
  }
}

// Keys and values of one head as the kernels want them, from numbers [count][head_dim].
struct Head {
  Head(std::int64_t positions, std::int64_t dim, std::uint64_t seed)
      : count(positions),
        head_dim(dim),
        k(random_floats(static_cast<std::size_t>(count * dim), seed)),
        v(random_floats(static_cast<std::size_t>(count * dim), seed + 1)) {
    ModelConfig config;
    config.d_model = dim;
    config.num_heads = 1;
    config.num_kv_heads = 1;
    cache = IntKvCache(config, count);
    store(kScalarKernels);
  }

  void store(const Kernels& kernels) {
    cache.store_keys(kernels, 0, {k.data(), count, head_dim});
    cache.store_values({.kernels = &kernels}, {v.data(), count, head_dim});
  }

  // softmax(q K^T) V in double.
  std::vector<double> attend(const float* q, const std::vector<std::uint8_t>& mask) const {
    std::vector<double> weights;
    double total = 0;
    for (std::int64_t t = 0; t < count; ++t) {
      double score = 0;
      for (std::int64_t i = 0; i < head_dim; ++i) {
        score += static_cast<double>(q[i]) * k[static_cast<std::size_t>(t * head_dim + i)];
      }
      const bool allowed = mask.empty() || mask[static_cast<std::size_t>(t)] != 0 ||
                           std::ranges::count(mask, 0) == std::ssize(mask);
      weights.push_back(
          allowed ? std::exp(mask.empty() || mask[static_cast<std::size_t>(t)] != 0 ? score : 0.0)
                  : 0.0);
      total += weights.back();
    }
    std::vector<double> out(static_cast<std::size_t>(head_dim));
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t i = 0; i < head_dim; ++i) {
        out[static_cast<std::size_t>(i)] += weights[static_cast<std::size_t>(t)] / total *
                                            v[static_cast<std::size_t>(t * head_dim + i)];
      }
    }
    return out;
  }

  std::int64_t count;
  std::int64_t head_dim;
  std::vector<float> k;
  std::vector<float> v;
  IntKvCache cache;
};

AlignedBuffer<float> scratch_for(std::int64_t count, std::int64_t rows) {
  return AlignedBuffer<float>(static_cast<std::size_t>(attention_scratch(count, rows)));
}

TEST(IntKernelsTest, EveryTableAttends) {
  struct Shape {
    std::int64_t count;
    std::int64_t head_dim;
    std::int64_t rows;
  };
  std::vector<Shape> shapes;
  for (const std::int64_t count : {1, 2, 15, 16, 17, 100, 301}) {
    for (const std::int64_t head_dim : {16, 48, 64, 80}) {
      shapes.push_back({count, head_dim, 21});  // 12 + 6 + 2 + 1, 5 * 4 + 1, 16 + 16 with 11 twice
    }
  }
  for (const std::int64_t rows : {1, 15, 16, 32, 50, 64, 70}) {
    shapes.push_back({33, 64, rows});
    shapes.push_back({160, 128, rows});
  }
  for (const Kernels* kernels : attending_tables()) {
    for (const auto& [count, head_dim, rows] : shapes) {
      SCOPED_TRACE(format("{} {} keys of {}, {} rows", kernels->name, count, head_dim, rows));
      const Head head(count, head_dim, 11);
      auto q = random_floats(static_cast<std::size_t>(rows * head_dim), 13);
      for (float& value : q) {
        value /= std::sqrt(static_cast<float>(head_dim));
      }
      std::vector<std::uint8_t> some(static_cast<std::size_t>(count), 1);
      some[static_cast<std::size_t>(count / 2)] = 0;
      const std::vector<std::uint8_t> none(static_cast<std::size_t>(count), 0);
      for (const auto& mask : {std::vector<std::uint8_t>(), some, none}) {
        AlignedBuffer<float> scratch = scratch_for(count, rows);
        std::vector<float> out(static_cast<std::size_t>(rows * head_dim), 77.0f);
        const std::uint8_t* const bytes = mask.empty() ? nullptr : mask.data();
        kernels->attend(head.cache.head(0), bytes, {q.data(), rows, head_dim}, scratch.data(),
                        {out.data(), rows, head_dim});
        std::vector<float> same(out.size());
        kScalarKernels.attend(head.cache.head(0), bytes, {q.data(), rows, head_dim}, scratch.data(),
                              {same.data(), rows, head_dim});
        ASSERT_EQ(out, same);
        for (std::int64_t row = 0; row < rows; ++row) {
          const auto expected = head.attend(q.data() + row * head_dim, mask);
          for (std::int64_t i = 0; i < head_dim; ++i) {
            // Steps of 1/2047 in queries, keys and values, 1/4095 and finer in the shares; sums
            // of random signs.
            ASSERT_NEAR(out[static_cast<std::size_t>(row * head_dim + i)],
                        expected[static_cast<std::size_t>(i)], 6e-3)
                << row << ' ' << i;
          }
        }
      }
    }
  }
}

TEST(IntKernelsTest, EveryTablePacksKeysAndValuesAlike) {
  for (const Kernels* kernels : row_tables()) {
    for (const std::int64_t count : {1, 15, 17, 33, 100}) {
      for (const std::int64_t head_dim : {16, 48, 80}) {
        SCOPED_TRACE(format("{} {} keys of {}", kernels->name, count, head_dim));
        Head expected(count, head_dim, 21);
        Head got(count, head_dim, 21);
        std::ranges::fill(std::span(expected.k).first(static_cast<std::size_t>(head_dim)), 0.0f);
        got.k = expected.k;
        expected.store(kScalarKernels);
        got.store(*kernels);
        const auto size = static_cast<std::size_t>((count + 31) / 32 * 32);
        const auto dim = static_cast<std::size_t>(head_dim);
        const IntKeyValues a = expected.cache.head(0);
        const IntKeyValues b = got.cache.head(0);
        EXPECT_TRUE(
            std::ranges::equal(std::span(a.keys, size * dim), std::span(b.keys, size * dim)));
        EXPECT_TRUE(
            std::ranges::equal(std::span(a.values, size * dim), std::span(b.values, size * dim)));
        EXPECT_TRUE(
            std::ranges::equal(std::span(a.key_scales, size), std::span(b.key_scales, size)));
        EXPECT_TRUE(
            std::ranges::equal(std::span(a.value_scales, dim), std::span(b.value_scales, dim)));
        EXPECT_GT(a.value_scales[0], 0.0f);
      }
    }
  }
}

// All shares at their largest, times the largest values: the most that 32 bits have to hold.
TEST(IntKernelsTest, EqualKeysOfManyPositionsDoNotOverflow) {
  constexpr std::int64_t kDim = 64;
  constexpr std::int64_t kRows = 17;
  for (const std::int64_t count : {256, 300, 5000}) {
    Head head(count, kDim, 3);
    std::ranges::fill(head.k, 1.0f);
    std::ranges::fill(head.v, 2.0f);
    head.store(kScalarKernels);
    const std::vector<float> q(kRows * kDim, 0.5f);
    for (const Kernels* kernels : attending_tables()) {
      AlignedBuffer<float> scratch = scratch_for(count, kRows);
      std::vector<float> out(kRows * kDim);
      kernels->attend(head.cache.head(0), nullptr, {q.data(), kRows, kDim}, scratch.data(),
                      {out.data(), kRows, kDim});
      for (const float value : out) {
        ASSERT_NEAR(value, 2.0f, 1e-5f) << kernels->name << ' ' << count;
      }
    }
  }
}

}  // namespace
}  // namespace needle::runtime
