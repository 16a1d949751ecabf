#include "needle/quant/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "needle/core/error.h"
#include "needle/core/safetensors.h"

namespace needle {
namespace {

static_assert(std::endian::native == std::endian::little,
              "weights files are little-endian and mapped as they lie");

constexpr std::size_t kMaxStep = 255;

// The three parts of a quantised tensor.
struct Parts {
  std::size_t codes = 0;
  std::size_t steps = 0;
  std::size_t units = 0;
};

Parts part_sizes(WeightEncoding encoding, std::int64_t rows, std::int64_t cols) {
  const auto blocks = static_cast<std::size_t>(row_blocks(rows));
  const auto groups = static_cast<std::size_t>(column_groups(cols));
  return {.codes = blocks * groups * block_bytes(encoding),
          .steps = blocks * groups * kRowBlock,
          .units = blocks * kRowBlock * sizeof(std::uint16_t)};
}

// The least bfloat16 that is not below `value` (positive, finite).
std::uint16_t bfloat16_not_below(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits >> 16) + ((bits & 0xffff) != 0 ? 1 : 0));
}

std::size_t code_offset(std::int64_t row, std::int64_t quad_col) {
  return static_cast<std::size_t>(64 * (quad_col / 4) + 4 * row + quad_col % 4);
}

void store_code(WeightEncoding encoding, std::byte* block, std::int64_t row, std::int64_t col,
                std::int32_t code) {
  if (encoding == WeightEncoding::kInt8) {
    block[code_offset(row, col)] = static_cast<std::byte>(code + 128);
    return;
  }
  const bool high = col >= kGroupSize / 2;
  std::byte& place = block[code_offset(row, high ? col - kGroupSize / 2 : col)];
  const auto nibble = static_cast<unsigned>(code + 8);
  place = high ? (place & std::byte{0x0f}) | static_cast<std::byte>(nibble << 4)
               : (place & std::byte{0xf0}) | static_cast<std::byte>(nibble);
}

std::vector<float> transposed(std::span<const float> matrix, std::int64_t rows, std::int64_t cols) {
  std::vector<float> result(matrix.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      result[static_cast<std::size_t>(col * rows + row)] =
          matrix[static_cast<std::size_t>(row * cols + col)];
    }
  }
  return result;
}

// The unit of a row's scales: the largest scale is at most 255 units.
std::uint16_t scale_unit(const QuantizedKernel& kernel, std::int64_t row) {
  float largest = 0;
  for (std::size_t i = static_cast<std::size_t>(row); i < kernel.scales.size();
       i += static_cast<std::size_t>(kernel.out)) {
    largest = std::max(largest, kernel.scales[i]);
  }
  // Past the largest bfloat16 the rounding up would give infinity.
  NEEDLE_CHECK(largest < 1e36f, "row {} has weights near the end of float32's range", row);
  return bfloat16_not_below(largest / static_cast<float>(kMaxStep));
}

}  // namespace

std::uint64_t packed_size(WeightEncoding encoding, std::int64_t rows, std::int64_t cols) {
  if (rows < 1 || cols < 1 || rows > kMaxMatrixSide || cols > kMaxMatrixSide) {
    throw FormatError(format("a matrix of {} x {} is out of range; each side is 1 to {}", rows,
                             cols, kMaxMatrixSide));
  }
  if (encoding == WeightEncoding::kF32) {
    return static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols) * sizeof(float);
  }
  const Parts parts = part_sizes(encoding, rows, cols);
  return parts.codes + parts.steps + parts.units;
}

std::vector<std::byte> pack_matrix(WeightEncoding encoding, std::span<const float> weights,
                                   std::int64_t rows, std::int64_t cols) {
  const std::uint64_t size = packed_size(encoding, rows, cols);
  NEEDLE_CHECK(weights.size() == static_cast<std::size_t>(rows * cols),
               "{} weights given for a {} x {} matrix", weights.size(), rows, cols);
  const auto bad = std::ranges::find_if(weights, [](float w) { return !std::isfinite(w); });
  NEEDLE_CHECK(bad == weights.end(), "weight [{}, {}] is {}; only finite weights can be deployed",
               (bad - weights.begin()) / cols, (bad - weights.begin()) % cols, *bad);
  std::vector<std::byte> bytes(size);
  if (encoding == WeightEncoding::kF32) {
    std::memcpy(bytes.data(), weights.data(), bytes.size());
    return bytes;
  }
  const QuantizedKernel kernel =
      quantize_groups(transposed(weights, rows, cols), cols, rows,
                      encoding == WeightEncoding::kInt4 ? QuantBits::kInt4 : QuantBits::kInt8);
  const Parts parts = part_sizes(encoding, rows, cols);
  std::byte* const codes = bytes.data();
  std::byte* const steps = codes + parts.codes;
  std::byte* const units = steps + parts.steps;
  // A zero code is not a zero byte.
  std::fill(codes, steps, encoding == WeightEncoding::kInt4 ? std::byte{0x88} : std::byte{0x80});
  const std::int64_t groups = column_groups(cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::uint16_t unit_bits = scale_unit(kernel, row);
    const float unit = bfloat16_to_float(unit_bits);
    std::memcpy(units + static_cast<std::size_t>(row) * sizeof unit_bits, &unit_bits,
                sizeof unit_bits);
    const std::int64_t block = row / kRowBlock;
    for (std::int64_t group = 0; group < groups; ++group) {
      const auto place = static_cast<std::size_t>(block * groups + group);
      const float scale = kernel.scales[static_cast<std::size_t>(group * rows + row)];
      const float step = std::min(std::nearbyint(scale / unit), static_cast<float>(kMaxStep));
      steps[place * kRowBlock + static_cast<std::size_t>(row % kRowBlock)] =
          static_cast<std::byte>(static_cast<int>(step));
      const std::int64_t end = std::min(cols, (group + 1) * kGroupSize);
      for (std::int64_t col = group * kGroupSize; col < end; ++col) {
        store_code(encoding, codes + place * block_bytes(encoding), row % kRowBlock,
                   col % kGroupSize, kernel.codes[static_cast<std::size_t>(col * rows + row)]);
      }
    }
  }
  return bytes;
}

void unpack_block(const MatrixView& matrix, std::int64_t row_block, std::int64_t group,
                  CodeBlock& codes) {
  const auto place = static_cast<std::size_t>(row_block * column_groups(matrix.cols) + group);
  const std::byte* block = matrix.bytes.data() + place * block_bytes(matrix.encoding);
  for (std::int64_t row = 0; row < kRowBlock; ++row) {
    if (matrix.encoding == WeightEncoding::kInt8) {
      for (std::int64_t col = 0; col < kGroupSize; ++col) {
        codes[col][row] = static_cast<std::int8_t>(
            std::to_integer<std::int32_t>(block[code_offset(row, col)]) - 128);
      }
      continue;
    }
    for (std::int64_t col = 0; col < kGroupSize / 2; ++col) {
      const auto pair = std::to_integer<std::int32_t>(block[code_offset(row, col)]);
      codes[col][row] = static_cast<std::int8_t>((pair & 0x0f) - 8);
      codes[col + kGroupSize / 2][row] = static_cast<std::int8_t>((pair >> 4) - 8);
    }
  }
}

std::vector<float> unpack_scales(const MatrixView& matrix) {
  const Parts parts = part_sizes(matrix.encoding, matrix.rows, matrix.cols);
  const std::byte* const steps = matrix.bytes.data() + parts.codes;
  const std::byte* const units = steps + parts.steps;
  const auto per_block = static_cast<std::size_t>(column_groups(matrix.cols)) * kRowBlock;
  std::vector<float> scales(parts.steps);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    std::uint16_t unit = 0;
    std::memcpy(&unit, units + (i / per_block * kRowBlock + i % kRowBlock) * sizeof unit,
                sizeof unit);
    scales[i] = bfloat16_to_float(unit) * static_cast<float>(std::to_integer<int>(steps[i]));
    if (!std::isfinite(scales[i])) {
      throw FormatError(format("scale {} of a {} x {} matrix is not a finite number", i,
                               matrix.rows, matrix.cols));
    }
  }
  return scales;
}

std::vector<float> unpack_matrix(const MatrixView& matrix) {
  NEEDLE_CHECK(matrix.bytes.size() == packed_size(matrix.encoding, matrix.rows, matrix.cols),
               "{} bytes given for a {} x {} matrix", matrix.bytes.size(), matrix.rows,
               matrix.cols);
  std::vector<float> weights(static_cast<std::size_t>(matrix.rows * matrix.cols));
  if (matrix.encoding == WeightEncoding::kF32) {
    std::memcpy(weights.data(), matrix.bytes.data(), matrix.bytes.size());
    return weights;
  }
  const std::vector<float> scales = unpack_scales(matrix);
  const std::int64_t groups = column_groups(matrix.cols);
  CodeBlock codes;
  for (std::int64_t block = 0; block < row_blocks(matrix.rows); ++block) {
    const std::int64_t rows = std::min(kRowBlock, matrix.rows - block * kRowBlock);
    for (std::int64_t group = 0; group < groups; ++group) {
      unpack_block(matrix, block, group, codes);
      const float* scale = scales.data() + (block * groups + group) * kRowBlock;
      const std::int64_t cols = std::min(kGroupSize, matrix.cols - group * kGroupSize);
      for (std::int64_t row = 0; row < rows; ++row) {
        float* out = weights.data() + (block * kRowBlock + row) * matrix.cols + group * kGroupSize;
        for (std::int64_t col = 0; col < cols; ++col) {
          out[col] = scale[row] * static_cast<float>(codes[col][row]);
        }
      }
    }
  }
  return weights;
}

}  // namespace needle
