// The matrices of model.h, apart from the rest of loading: a row of the embedding is read for every
// token.
#include <algorithm>
#include <bit>
#include <cmath>

#include "needle/core/error.h"
#include "needle/runtime/model.h"

namespace needle::runtime {
namespace {

static_assert(kPanelWidth == kRowBlock && kPanelGroup == kGroupSize,
              "a panel is a row block of the file");

float bfloat16_at(const std::uint8_t* bytes, std::int64_t index) {
  const auto bits = static_cast<std::uint32_t>(bytes[2 * index] | bytes[2 * index + 1] << 8) << 16;
  return std::bit_cast<float>(bits);
}

// The three arrays of a 4-bit matrix, where they lie.
Int4Matrix view_int4(const MatrixView& stored) {
  const std::int64_t blocks = row_blocks(stored.rows);
  const std::int64_t groups = column_groups(stored.cols);
  const auto* const codes = reinterpret_cast<const std::uint8_t*>(stored.bytes.data());
  const std::uint8_t* const steps = codes + blocks * groups * 256;
  const Int4Matrix matrix{.in = stored.cols,
                          .out = stored.rows,
                          .codes = codes,
                          .steps = steps,
                          .units = steps + blocks * groups * kRowBlock};
  for (std::int64_t row = 0; row < stored.rows; ++row) {
    if (const float unit = bfloat16_at(matrix.units, row); !std::isfinite(unit)) {
      throw FormatError(format("row {} of a matrix has the scale unit {}", row, unit));
    }
  }
  return matrix;
}

}  // namespace

Matrix::Matrix(const MatrixView& stored, Numerics numerics) : in_(stored.cols), out_(stored.rows) {
  const std::int64_t panels = row_blocks(out_);
  if (numerics != Numerics::kFloat && stored.encoding == WeightEncoding::kInt4 &&
      in_ <= kMaxInt4Inputs) {
    int4_ = view_int4(stored);
    return;
  }
  const auto size = static_cast<std::size_t>(panels * in_ * kPanelWidth);
  if (stored.encoding == WeightEncoding::kF32) {
    values_ = AlignedBuffer<float>(size);
    const std::vector<float> weights = unpack_matrix(stored);
    for (std::int64_t row = 0; row < out_; ++row) {
      float* const to = values_.data() + row / kPanelWidth * in_ * kPanelWidth + row % kPanelWidth;
      for (std::int64_t i = 0; i < in_; ++i) {
        to[i * kPanelWidth] = weights[static_cast<std::size_t>(row * in_ + i)];
      }
    }
    return;
  }
  codes_ = AlignedBuffer<std::int8_t>(size);
  const std::int64_t groups = column_groups(in_);
  CodeBlock block;
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    for (std::int64_t group = 0; group < groups; ++group) {
      unpack_block(stored, panel, group, block);
      const std::int64_t count = std::min(kGroupSize, in_ - group * kGroupSize);
      std::copy_n(&block[0][0], count * kPanelWidth,
                  codes_.data() + (panel * in_ + group * kGroupSize) * kPanelWidth);
    }
  }
  const std::vector<float> scales = unpack_scales(stored);
  scales_ = AlignedBuffer<float>(scales.size());
  std::ranges::copy(scales, scales_.data());
}

Panels Matrix::panels() const {
  return {.in = in_,
          .out = out_,
          .stride = in_ * kPanelWidth,
          .values = values_.data(),
          .codes = codes_.data(),
          .scales = scales_.data()};
}

void Matrix::copy_row(std::int64_t row, float scale, std::span<float> to) const noexcept {
  const std::int64_t panel = row / kPanelWidth;
  const std::int64_t column = row % kPanelWidth;
  if (is_int4()) {
    const std::int64_t groups = column_groups(in_);
    const float unit = bfloat16_at(int4_.units, row);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::uint8_t* const codes = int4_.codes + (panel * groups + group) * 256 + 4 * column;
      const float step =
          unit * static_cast<float>(int4_.steps[(panel * groups + group) * kPanelWidth + column]);
      float values[kPanelGroup];
      for (std::int64_t at = 0; at < kPanelGroup / 2; ++at) {
        const int both = codes[64 * (at / 4) + at % 4];
        values[at] = scale * (step * static_cast<float>((both & 15) - 8));
        values[kPanelGroup / 2 + at] = scale * (step * static_cast<float>((both >> 4) - 8));
      }
      const std::int64_t count = std::min(kPanelGroup, in_ - group * kPanelGroup);
      std::copy_n(values, count, to.data() + group * kPanelGroup);
    }
    return;
  }
  const std::int64_t first = panel * in_ * kPanelWidth + column;
  if (values_.data() != nullptr) {
    for (std::int64_t i = 0; i < in_; ++i) {
      to[static_cast<std::size_t>(i)] = scale * values_.data()[first + i * kPanelWidth];
    }
    return;
  }
  const float* const scales = scales_.data() + panel * column_groups(in_) * kPanelWidth + column;
  for (std::int64_t i = 0; i < in_; ++i) {
    to[static_cast<std::size_t>(i)] =
        scale * (scales[i / kPanelGroup * kPanelWidth] *
                 static_cast<float>(codes_.data()[first + i * kPanelWidth]));
  }
}

}  // namespace needle::runtime
