#include "needle/runtime/kernels/kernels.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/runtime/aligned_buffer.h"

namespace needle::runtime {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512vnni", "avx512amx", "neon"};

const Kernels* kernels_or_null(const char* name) {
  try {
    return &find_kernels(name);
  } catch (const ConfigError&) {
    return nullptr;  // another CPU's
  }
}

std::vector<float> random_floats(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(random.normal());
  }
  return values;
}

struct Case {
  std::int64_t in;
  std::int64_t out;
  std::int64_t rows;
};
constexpr Case kCases[] = {{32, 16, 1},  {64, 64, 2},   {7, 5, 1},     {33, 17, 3}, {128, 48, 9},
                           {129, 31, 4}, {500, 40, 70}, {16, 200, 66}, {1, 1, 1},   {40, 3, 130}};

// A sum of `in` products, each with a relative error of one rounding, added in some order: within
// in * epsilon * sum |x w|, and far below that in practice.
void expect_close(const std::vector<float>& expected, const std::vector<float>& got,
                  const std::vector<float>& magnitudes, std::int64_t in) {
  ASSERT_EQ(expected.size(), got.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float allowed = static_cast<float>(in + 2) * 1.2e-7f * magnitudes[i] + 1e-12f;
    ASSERT_NEAR(expected[i], got[i], allowed) << i;
  }
}

TEST(KernelsTest, EveryTableMultipliesAsTheScalarOne) {
  for (const char* name : kNames) {
    const Kernels* kernels = kernels_or_null(name);
    if (kernels == nullptr) {
      continue;
    }
    for (const Case& c : kCases) {
      SCOPED_TRACE(format("{} {}x{} rows {}", name, c.in, c.out, c.rows));
      const std::int64_t panels = (c.out + 15) / 16;
      const std::int64_t groups = (c.in + 31) / 32;
      Random random(5);
      std::vector<std::int8_t> codes(static_cast<std::size_t>(panels * c.in * 16));
      for (std::int8_t& code : codes) {
        code = static_cast<std::int8_t>(static_cast<int>(random.below(255)) - 127);
      }
      const auto scales = random_floats(static_cast<std::size_t>(panels * groups * 16), 6);
      const auto values = random_floats(codes.size(), 7);
      const std::int64_t x_stride = c.in + 3;
      const std::int64_t y_stride = c.out + 2;
      const auto x = random_floats(static_cast<std::size_t>(c.rows * x_stride), 8);
      for (const bool quantised : {false, true}) {
        Panels w{.in = c.in, .out = c.out, .stride = c.in * 16};
        if (quantised) {
          w.codes = codes.data();
          w.scales = scales.data();
        } else {
          w.values = values.data();
        }
        const auto run = [&](const Kernels& table, const std::vector<float>& input) {
          std::vector<float> y(static_cast<std::size_t>(c.rows * y_stride), 77.0f);
          table.multiply(w, {input.data(), c.rows, x_stride}, {y.data(), c.rows, y_stride}, 0,
                         panels);
          return y;
        };
        const auto expected = run(kScalarKernels, x);
        const auto got = run(*kernels, x);
        std::vector<float> magnitudes(expected.size());
        for (std::int64_t row = 0; row < c.rows; ++row) {
          for (std::int64_t out = 0; out < c.out; ++out) {
            float& sum = magnitudes[static_cast<std::size_t>(row * y_stride + out)];
            for (std::int64_t i = 0; i < c.in; ++i) {
              const auto at = static_cast<std::size_t>((out / 16 * c.in + i) * 16 + out % 16);
              const auto group =
                  static_cast<std::size_t>((out / 16 * groups + i / 32) * 16 + out % 16);
              sum += std::abs(
                  x[static_cast<std::size_t>(row * x_stride + i)] *
                  (quantised ? scales[group] * static_cast<float>(codes[at]) : values[at]));
            }
          }
        }
        expect_close(expected, got, magnitudes, c.in);  // the gaps between rows stay 77, too
        std::vector<float> other = x;
        other[0] += 1.0f;
        EXPECT_NE(run(*kernels, other), got);
      }
    }
  }
}

TEST(KernelsTest, PartsOfTheOutputsAreTheSameAsAllAtOnce) {
  for (const char* name : kNames) {
    const Kernels* kernels = kernels_or_null(name);
    if (kernels == nullptr) {
      continue;
    }
    const auto values = random_floats(4 * 50 * 16, 1);
    const auto x = random_floats(9 * 50, 2);
    const Panels w{.in = 50, .out = 60, .stride = 50 * 16, .values = values.data()};
    std::vector<float> whole(9 * 60);
    std::vector<float> parts(9 * 60);
    kernels->multiply(w, {x.data(), 9, 50}, {whole.data(), 9, 60}, 0, 4);
    kernels->multiply(w, {x.data(), 9, 50}, {parts.data(), 9, 60}, 3, 4);
    kernels->multiply(w, {x.data(), 9, 50}, {parts.data(), 9, 60}, 0, 3);
    EXPECT_EQ(whole, parts) << name;
  }
}

TEST(KernelsTest, EveryTableTakesTheSameSoftmax) {
  for (const char* name : kNames) {
    const Kernels* kernels = kernels_or_null(name);
    if (kernels == nullptr) {
      continue;
    }
    for (std::int64_t count = 1; count < 70; ++count) {
      AlignedBuffer<float> expected(static_cast<std::size_t>(count + 16));
      AlignedBuffer<float> got(static_cast<std::size_t>(count + 16));
      const auto scores =
          random_floats(static_cast<std::size_t>(count), static_cast<std::uint64_t>(count));
      for (std::int64_t i = 0; i < count; ++i) {
        const float score = i % 5 == 3 ? std::numeric_limits<float>::lowest()
                                       : 20 * scores[static_cast<std::size_t>(i)];
        expected.data()[i] = got.data()[i] = score;
      }
      kScalarKernels.softmax(expected.data(), count);
      kernels->softmax(got.data(), count);
      for (std::int64_t i = 0; i < count; ++i) {
        // exp within 2 units in the last place, a sum of `count` terms, one division.
        EXPECT_NEAR(got.data()[i], expected.data()[i], 1e-6f * expected.data()[i] + 1e-30f)
            << name << " " << count << " " << i;
      }
    }
  }
}

// The definition in double, and the same bits from every table.
TEST(KernelsTest, EveryTableAddsAndNormsAlike) {
  for (const std::int64_t width : {1, 15, 16, 40, 64, 129, 512}) {
    constexpr std::int64_t kRows = 3;
    const std::int64_t stride = width + 5;
    const auto size = static_cast<std::size_t>(kRows * stride);
    const auto x = random_floats(size, 3);
    const auto update = random_floats(size, 4);
    const auto factors = random_floats(static_cast<std::size_t>(width), 5);
    for (const bool adds : {false, true}) {
      const auto run = [&](const Kernels& kernels, bool in_place) {
        std::vector<float> sum = x;
        std::vector<float> y(size, 77.0f);
        float* const to = in_place ? sum.data() : y.data();
        kernels.add_norm(0.3f, {adds ? update.data() : nullptr, kRows, stride}, factors.data(),
                         width, {sum.data(), kRows, stride}, {to, kRows, stride});
        if (!in_place) {
          sum.insert(sum.end(), y.begin(), y.end());
        }
        return sum;
      };
      const auto expected = run(kScalarKernels, false);
      for (std::int64_t row = 0; row < kRows; ++row) {
        double squares = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          const auto at = static_cast<std::size_t>(row * stride + i);
          ASSERT_NEAR(expected[at], x[at] + (adds ? 0.3f * update[at] : 0.0f), 1e-6f);
          squares += static_cast<double>(expected[at]) * expected[at];
        }
        const double root = std::sqrt(squares / static_cast<double>(width) + 1e-6);
        for (std::int64_t i = 0; i < width; ++i) {
          const auto at = static_cast<std::size_t>(row * stride + i);
          const double normed = factors[static_cast<std::size_t>(i)] * expected[at] / root;
          ASSERT_NEAR(expected[size + at], normed, 1e-6 * std::abs(normed) + 1e-12);
        }
      }
      for (const char* name : kNames) {
        if (const Kernels* kernels = kernels_or_null(name)) {
          ASSERT_EQ(run(*kernels, false), expected) << name << ' ' << width;
          ASSERT_EQ(run(*kernels, true), run(kScalarKernels, true)) << name << ' ' << width;
        }
      }
    }
  }
}

TEST(KernelsTest, EveryTableTransformsHeadsAlike) {
  for (const std::int64_t dim : {2, 6, 12, 16, 48, 64, 80}) {
    constexpr std::int64_t kRows = 3;
    constexpr std::int64_t kHeads = 2;
    const std::int64_t stride = kHeads * dim + 3;
    const auto x = random_floats(static_cast<std::size_t>(kRows * stride), 6);
    const auto factors = random_floats(static_cast<std::size_t>(dim), 7);
    const auto cos = random_floats(static_cast<std::size_t>(kRows * dim / 2), 8);
    const auto sin = random_floats(static_cast<std::size_t>(kRows * dim / 2), 9);
    for (const bool rotates : {false, true}) {
      const HeadTransform transform{.head_dim = dim,
                                    .factors = factors.data(),
                                    .cos = rotates ? cos.data() : nullptr,
                                    .sin = rotates ? sin.data() : nullptr,
                                    .scale = 0.3f};
      const auto run = [&](const Kernels& kernels) {
        std::vector<float> rows = x;
        kernels.transform_heads(transform, kHeads, {rows.data(), kRows, stride});
        return rows;
      };
      const auto expected = run(kScalarKernels);
      for (std::int64_t row = 0; row < kRows; ++row) {  // the second head, by the definition
        const float* const from = x.data() + row * stride + dim;
        std::vector<double> head(from, from + dim);
        double squares = 0;
        for (const double value : head) {
          squares += value * value;
        }
        const double root = std::sqrt(squares / static_cast<double>(dim) + 1e-6);
        for (std::int64_t i = 0; i < dim; ++i) {
          head[static_cast<std::size_t>(i)] *= factors[static_cast<std::size_t>(i)] / root;
        }
        for (std::int64_t i = 0; i < dim; ++i) {
          const std::int64_t half = dim / 2;
          const auto other = static_cast<std::size_t>(i < half ? i + half : i - half);
          const auto at = static_cast<std::size_t>(row * half + i % half);
          const double turned = head[static_cast<std::size_t>(i)] * cos[at] +
                                (i < half ? -1 : 1) * head[other] * sin[at];
          ASSERT_NEAR(expected[static_cast<std::size_t>(row * stride + dim + i)],
                      0.3 * (rotates ? turned : head[static_cast<std::size_t>(i)]), 3e-6);
        }
      }
      for (const char* name : kNames) {
        if (const Kernels* kernels = kernels_or_null(name)) {
          ASSERT_EQ(run(*kernels), expected) << name << ' ' << dim;
        }
      }
    }
  }
}

TEST(KernelsTest, FullyMaskedRowIsUniform) {
  for (const char* name : {"scalar", "generic", "avx2", "avx512"}) {
    const Kernels* kernels = kernels_or_null(name);
    if (kernels == nullptr) {
      continue;
    }
    AlignedBuffer<float> row(32);
    std::fill_n(row.data(), 21, std::numeric_limits<float>::lowest());
    kernels->softmax(row.data(), 21);
    for (int i = 0; i < 21; ++i) {
      EXPECT_NEAR(row.data()[i], 1.0f / 21, 1e-8f) << name;
    }
  }
}

TEST(KernelsTest, UnknownInstructionSetIsRefusedByName) {
  EXPECT_THROW(find_kernels("sse9"), ConfigError);
  EXPECT_STREQ(find_kernels("scalar").name, "scalar");
  ASSERT_EQ(setenv("NEEDLE_ISA", "generic", 1), 0);
  EXPECT_STREQ(select_kernels().name, "generic");
  ASSERT_EQ(setenv("NEEDLE_ISA", "abacus", 1), 0);
  EXPECT_THROW(select_kernels(), ConfigError);
  ASSERT_EQ(unsetenv("NEEDLE_ISA"), 0);
}

}  // namespace
}  // namespace needle::runtime
