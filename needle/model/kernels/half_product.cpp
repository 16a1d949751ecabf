#include "needle/model/kernels/half_product.h"

#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace needle {
namespace {

constexpr std::int64_t kRows = 12;  // with 64 columns, 24 of the 32 registers hold sums
constexpr std::int64_t kColumns = 64;

std::int64_t panels(std::int64_t size, std::int64_t width) { return (size + width - 1) / width; }

}  // namespace

const std::uint32_t* HalfLeft::panel(std::int64_t index) const {
  return values_.data() + index * inner_ * kRows;
}

const std::uint16_t* HalfRight::panel(std::int64_t index) const {
  return values_.data() + index * inner_ * kColumns;
}

std::uint16_t* HalfRight::make_room(std::int64_t inner, std::int64_t columns) {
  inner_ = inner;
  const auto size = static_cast<std::size_t>(panels(columns, kColumns) * inner * kColumns);
  if (values_.size() < size) {
    values_.resize(size);
  }
  return values_.data();
}

#if defined(__x86_64__) && defined(__AVX512FP16__)
namespace {

constexpr std::int64_t kTermsOfASum = 64;
// Factors are multiplied by this, so that small values are no subnormal numbers of float16.
constexpr float kScale = 16.0F;

__m256i to_half(__m512 values) {
  return _mm256_castph_si256(_mm512_cvtxps_ph(_mm512_mul_ps(values, _mm512_set1_ps(kScale))));
}

__mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? static_cast<__mmask16>(0xFFFF)
                     : static_cast<__mmask16>((1U << static_cast<unsigned>(count)) - 1U);
}

__m512i every(std::int64_t stride) {
  const auto lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(stride)));
}

// tile [12][64] += 12 rows of the left panel times 64 columns of the right.
void add_tile(const std::uint32_t* left, const std::uint16_t* right, std::int64_t inner,
              float* tile) {
  for (std::int64_t start = 0; start < inner; start += kTermsOfASum) {
    const std::int64_t end = start + kTermsOfASum < inner ? start + kTermsOfASum : inner;
    __m512h sums[kRows][2];
#pragma GCC unroll 12
    for (std::int64_t r = 0; r < kRows; ++r) {
      sums[r][0] = _mm512_setzero_ph();
      sums[r][1] = _mm512_setzero_ph();
    }
    for (std::int64_t k = start; k < end; ++k) {
      const __m512h b0 = _mm512_loadu_ph(right + k * kColumns);
      const __m512h b1 = _mm512_loadu_ph(right + k * kColumns + kColumns / 2);
#pragma GCC unroll 12
      for (std::int64_t r = 0; r < kRows; ++r) {
        const __m512h a =
            _mm512_castsi512_ph(_mm512_set1_epi32(static_cast<int>(left[k * kRows + r])));
        sums[r][0] = _mm512_fmadd_ph(a, b0, sums[r][0]);
        sums[r][1] = _mm512_fmadd_ph(a, b1, sums[r][1]);
      }
    }
#pragma GCC unroll 12
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (std::int64_t half = 0; half < 2; ++half) {
        float* out = tile + r * kColumns + half * kColumns / 2;
        const __m512i bits = _mm512_castph_si512(sums[r][half]);
        const __m512 low = _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_castsi512_si256(bits)));
        const __m512 high =
            _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_extracti64x4_epi64(bits, 1)));
        _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), low));
        _mm512_storeu_ps(out + 16, _mm512_add_ps(_mm512_loadu_ps(out + 16), high));
      }
    }
  }
}

// rows x columns of the tile go into the result.
void finish_tile(const float* tile, std::int64_t rows, std::int64_t columns, float alpha,
                 float beta, float* result, std::int64_t stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; c += 16) {
      const __mmask16 lanes = first_lanes(columns - c);
      float* out = result + r * stride + c;
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(tile + r * kColumns + c),
                                         _mm512_set1_ps(alpha / (kScale * kScale)));
      // beta 0 must not read what is there: it may be NaN.
      const __m512 sum = beta == 0.0F ? value
                                      : _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, out),
                                                        _mm512_set1_ps(beta), value);
      _mm512_mask_storeu_ps(out, lanes, sum);
    }
  }
}

}  // namespace

void HalfLeft::pack(const float* data, std::int64_t rows, std::int64_t inner) {
  inner_ = inner;
  const auto size = static_cast<std::size_t>(panels(rows, kRows) * inner * kRows);
  if (values_.size() < size) {
    values_.resize(size);
  }
  const __m512i places = every(kRows);
  for (std::int64_t row = 0; row < panels(rows, kRows) * kRows; ++row) {
    std::uint32_t* out = values_.data() + row / kRows * inner * kRows + row % kRows;
    for (std::int64_t k = 0; k < inner; k += 16) {
      const __mmask16 lanes = first_lanes(inner - k);
      const __m512 values =
          row < rows ? _mm512_maskz_loadu_ps(lanes, data + row * inner + k) : _mm512_setzero_ps();
      const __m512i wide = _mm512_cvtepu16_epi32(to_half(values));
      const __m512i twice = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
      _mm512_mask_i32scatter_epi32(out + k * kRows, lanes, places, twice, 4);
    }
  }
}

void HalfRight::pack(const float* data, std::int64_t inner, std::int64_t columns) {
  std::uint16_t* values = make_room(inner, columns);
  for (std::int64_t panel = 0; panel < panels(columns, kColumns); ++panel) {
    for (std::int64_t k = 0; k < inner; ++k) {
      std::uint16_t* out = values + (panel * inner + k) * kColumns;
      for (std::int64_t c = 0; c < kColumns; c += 16) {
        const std::int64_t first = panel * kColumns + c;
        const __m512 row = first < columns ? _mm512_maskz_loadu_ps(first_lanes(columns - first),
                                                                   data + k * columns + first)
                                           : _mm512_setzero_ps();
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), to_half(row));
      }
    }
  }
}

void HalfRight::pack_transposed(const float* data, std::int64_t columns, std::int64_t inner) {
  std::uint16_t* values = make_room(inner, columns);
  const __m512i places = every(kColumns / 2);
  const auto row_of = [&](std::int64_t column, std::int64_t k, __mmask16 lanes) {
    const __m512 row = column < columns ? _mm512_maskz_loadu_ps(lanes, data + column * inner + k)
                                        : _mm512_setzero_ps();
    return _mm512_cvtepu16_epi32(to_half(row));
  };
  // Two columns are one 32-bit place.
  for (std::int64_t column = 0; column < panels(columns, kColumns) * kColumns; column += 2) {
    auto* out = reinterpret_cast<std::uint32_t*>(values + column / kColumns * inner * kColumns) +
                column % kColumns / 2;
    for (std::int64_t k = 0; k < inner; k += 16) {
      const __mmask16 lanes = first_lanes(inner - k);
      const __m512i pair = _mm512_or_si512(row_of(column, k, lanes),
                                           _mm512_slli_epi32(row_of(column + 1, k, lanes), 16));
      _mm512_mask_i32scatter_epi32(out + k * kColumns / 2, lanes, places, pair, 4);
    }
  }
}

void multiply_half(const ScaledProduct& shape, const HalfLeft& left, const HalfRight& right,
                   float* result) {
  alignas(64) float tile[kRows * kColumns];
  for (std::int64_t column = 0; column < shape.columns; column += kColumns) {
    const std::int64_t columns =
        column + kColumns < shape.columns ? kColumns : shape.columns - column;
    for (std::int64_t row = 0; row < shape.rows; row += kRows) {
      const std::int64_t rows = row + kRows < shape.rows ? kRows : shape.rows - row;
      if (shape.lower && row + rows <= column) {
        continue;
      }
      for (float& value : tile) {
        value = 0.0F;
      }
      add_tile(left.panel(row / kRows), right.panel(column / kColumns), left.inner(), tile);
      finish_tile(tile, rows, columns, shape.alpha, shape.beta,
                  result + row * shape.columns + column, shape.columns);
    }
  }
}

#else

void HalfLeft::pack(const float*, std::int64_t, std::int64_t) {}
void HalfRight::pack(const float*, std::int64_t, std::int64_t) {}
void HalfRight::pack_transposed(const float*, std::int64_t, std::int64_t) {}
void multiply_half(const ScaledProduct&, const HalfLeft&, const HalfRight&, float*) {}

#endif
}  // namespace needle
