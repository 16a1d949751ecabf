#include "needle/quant/pack.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {
namespace {

std::vector<float> random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> weights(static_cast<std::size_t>(rows * cols));
  for (float& weight : weights) {
    weight = static_cast<float>(0.02 * random.normal());
  }
  return weights;
}

MatrixView view(const std::vector<std::byte>& bytes, WeightEncoding encoding, std::int64_t rows,
                std::int64_t cols) {
  return {.encoding = encoding, .rows = rows, .cols = cols, .bytes = bytes};
}

struct Shape {
  std::int64_t rows;
  std::int64_t cols;
};
constexpr Shape kShapes[] = {{16, 32}, {1, 1}, {5, 7}, {17, 33}, {40, 64}, {3, 100}, {64, 16}};

TEST(PackTest, DeployedWeightIsGroupQuantsCodeTimesAScaleWithinHalfAStep) {
  for (const WeightEncoding encoding : {WeightEncoding::kInt4, WeightEncoding::kInt8}) {
    const QuantBits bits = encoding == WeightEncoding::kInt4 ? QuantBits::kInt4 : QuantBits::kInt8;
    for (const Shape shape : kShapes) {
      const auto weights = random_matrix(shape.rows, shape.cols, 3);
      const auto bytes = pack_matrix(encoding, weights, shape.rows, shape.cols);
      ASSERT_EQ(bytes.size(), packed_size(encoding, shape.rows, shape.cols));
      const auto deployed = unpack_matrix(view(bytes, encoding, shape.rows, shape.cols));

      std::vector<float> transposed(weights.size());  // group_quant wants [in, out]
      for (std::int64_t row = 0; row < shape.rows; ++row) {
        for (std::int64_t col = 0; col < shape.cols; ++col) {
          transposed[static_cast<std::size_t>(col * shape.rows + row)] =
              weights[static_cast<std::size_t>(row * shape.cols + col)];
        }
      }
      const QuantizedKernel kernel = quantize_groups(transposed, shape.cols, shape.rows, bits);
      for (std::int64_t row = 0; row < shape.rows; ++row) {
        float largest = 0;
        for (std::int64_t group = 0; group < column_groups(shape.cols); ++group) {
          largest =
              std::max(largest, kernel.scales[static_cast<std::size_t>(group * shape.rows + row)]);
        }
        // Half a step of the row's largest scale; its unit was rounded up by less than 2^-7.
        const float half_step = 0.5f * (1 + 1.0f / 128) * largest / 255;
        for (std::int64_t col = 0; col < shape.cols; ++col) {
          const auto at = static_cast<std::size_t>(col * shape.rows + row);
          const auto code = static_cast<float>(kernel.codes[at]);
          const float scale =
              kernel.scales[static_cast<std::size_t>(col / kernel.group_size * shape.rows + row)];
          EXPECT_NEAR(deployed[static_cast<std::size_t>(row * shape.cols + col)], code * scale,
                      std::abs(code) * half_step * 1.001f);
        }
      }
    }
  }
}

TEST(PackTest, PackingDeployedWeightsKeepsEveryCode) {
  const auto weights = random_matrix(20, 70, 5);
  const auto bytes = pack_matrix(WeightEncoding::kInt4, weights, 20, 70);
  const auto deployed = unpack_matrix(view(bytes, WeightEncoding::kInt4, 20, 70));
  const auto again = pack_matrix(WeightEncoding::kInt4, deployed, 20, 70);
  const std::size_t codes = 2 * 3 * block_bytes(WeightEncoding::kInt4);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + codes, again.begin()));
}

TEST(PackTest, CodesLieWhereTheFormatSays) {
  std::vector<float> weights(16 * 32, 0.0f);
  weights[3 * 32 + 5] = 7.0f;    // row 3, column 5: quad 1, byte 64 + 12 + 1, low half
  weights[3 * 32 + 22] = -7.0f;  // row 3, column 22 = 16 + 6: quad 1, byte 64 + 12 + 2, high half
  const auto int4 = pack_matrix(WeightEncoding::kInt4, weights, 16, 32);
  EXPECT_EQ(int4.size(), 256u + 16 + 32);
  EXPECT_EQ(int4[77], std::byte{0x8f});
  EXPECT_EQ(int4[78], std::byte{0x18});
  EXPECT_EQ(std::count(int4.begin(), int4.begin() + 256, std::byte{0x88}), 254);
  const auto int8 = pack_matrix(WeightEncoding::kInt8, weights, 16, 32);
  EXPECT_EQ(int8[64 * (5 / 4) + 4 * 3 + 1], std::byte{255});
  EXPECT_EQ(int8[64 * (22 / 4) + 4 * 3 + 2], std::byte{1});
}

TEST(PackTest, UnquantisedMatrixComesBackUnchanged) {
  const auto weights = random_matrix(5, 9, 11);
  const auto bytes = pack_matrix(WeightEncoding::kF32, weights, 5, 9);
  EXPECT_EQ(unpack_matrix(view(bytes, WeightEncoding::kF32, 5, 9)), weights);
}

TEST(PackTest, RowsOfZerosAndOfTinyWeightsStayFinite) {
  std::vector<float> weights(2 * 32, 0.0f);
  weights[32] = 1e-20f;
  const auto bytes = pack_matrix(WeightEncoding::kInt4, weights, 2, 32);
  for (const float weight : unpack_matrix(view(bytes, WeightEncoding::kInt4, 2, 32))) {
    EXPECT_EQ(weight, 0.0f);
  }
}

TEST(PackTest, RefusesWhatCannotBeDeployed) {
  std::vector<float> weights(4, 1.0f);
  EXPECT_THROW(pack_matrix(WeightEncoding::kInt4, weights, 2, 3), Error);
  EXPECT_THROW(packed_size(WeightEncoding::kInt4, 0, 3), FormatError);
  EXPECT_THROW(packed_size(WeightEncoding::kF32, kMaxMatrixSide + 1, 3), FormatError);
  weights[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(pack_matrix(WeightEncoding::kInt8, weights, 2, 2), Error);
}

}  // namespace
}  // namespace needle
