// How a matrix lies in the weights file (docs/file-format.md), and back to floats.
//
// A matrix has rows = outputs and cols = inputs, as LibTorch stores a dense kernel [out, in] and
// the embedding [V, d]; groups of 32 lie along cols. Quantised matrices are cut into blocks of 16
// rows x 32 columns (zeros fill the last ones), the shape that 4-wide integer dot products read
// without shuffling:
//
//   int4 block, 256 bytes: byte 64 q + 4 r + j, q in 0..3, holds of row r the code of column
//     4 q + j in its low half and of column 16 + 4 q + j in its high half, each as code + 8
//   int8 block, 512 bytes: byte 64 q + 4 r + j, q in 0..7, holds the code of column 4 q + j as
//     code + 128
//
// A tensor is codes [row blocks][groups][block], then scale steps u8 [row blocks][groups][16], then
// scale units bfloat16 [row blocks][16]. weight = (unit * step) * code, exact in float32.
//
// Scales take 8 bits relative to the largest of their row, not a half of their own: the released
// shape has 822,000 groups, and 16-bit scales alone would lift its file over 14.5 MB. The codes are
// group_quant's, untouched, so that training and deployment round alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/quant/group_quant.h"

namespace needle {

enum class WeightEncoding { kF32, kInt8, kInt4 };  // kF32: row-major, loses nothing; for tests
inline constexpr EnumNames<WeightEncoding, 3> kWeightEncodingNames{
    {{{WeightEncoding::kF32, "f32"},
      {WeightEncoding::kInt8, "int8"},
      {WeightEncoding::kInt4, "int4"}}}};
template <>
struct EnumTable<WeightEncoding> {
  static constexpr const auto& value = kWeightEncodingNames;
};

inline constexpr std::int64_t kRowBlock = 16;

constexpr std::int64_t row_blocks(std::int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }
constexpr std::int64_t column_groups(std::int64_t cols) {
  return (cols + kGroupSize - 1) / kGroupSize;
}
constexpr std::size_t block_bytes(WeightEncoding encoding) {
  return encoding == WeightEncoding::kInt4 ? 256 : 512;
}

// A matrix in the file; does not own its bytes, which lie at any alignment.
struct MatrixView {
  WeightEncoding encoding = WeightEncoding::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::span<const std::byte> bytes;  // packed_size(encoding, rows, cols)
};

// Bytes of a packed matrix. rows, cols: 1 .. kMaxMatrixSide; anything else throws FormatError.
inline constexpr std::int64_t kMaxMatrixSide = std::int64_t{1} << 28;
std::uint64_t packed_size(WeightEncoding encoding, std::int64_t rows, std::int64_t cols);

// `weights`: [rows, cols], row-major. Throws needle::Error if a value is not finite or the sizes do
// not match.
std::vector<std::byte> pack_matrix(WeightEncoding encoding, std::span<const float> weights,
                                   std::int64_t rows, std::int64_t cols);

// The deployed weights [rows, cols]: what the file makes of the values it was given, exactly.
std::vector<float> unpack_matrix(const MatrixView& matrix);

// One block of a quantised matrix as [kGroupSize columns][kRowBlock rows].
using CodeBlock = std::int8_t[kGroupSize][kRowBlock];
void unpack_block(const MatrixView& matrix, std::int64_t row_block, std::int64_t group,
                  CodeBlock& codes);
// All scales of a quantised matrix, float32 [row blocks][groups][kRowBlock]. Throws FormatError if
// one is not finite.
std::vector<float> unpack_scales(const MatrixView& matrix);

}  // namespace needle
