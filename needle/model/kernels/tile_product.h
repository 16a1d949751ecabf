// Matrix products of bfloat16 factors with sums in float32, on CPUs with AMX (and AVX512_BF16). A
// factor is packed into tiles first; from float32 it is rounded to the nearest meanwhile, from its
// transpose it is turned meanwhile. Numbers too small for a normal float32 count as zero. Threads
// may share packed factors; each runs its own products.
#pragma once

#include <cstdint>
#include <vector>

#include "needle/model/kernels/scaled_product.h"

namespace needle {

// Asks the operating system for the tiles, once. NEEDLE_ISA other than avx512amx hides them.
bool has_tile_products();

// Rows of float32, or of bfloat16 (their 16 bits), with their values side by side. One of the two.
struct TileSource {
  const float* wide = nullptr;
  const std::uint16_t* rounded = nullptr;
  std::int64_t stride = 0;  // values from one row to the next
  bool transposed = false;  // taken as its transpose
};

// A factor as tiles of 16 x 32 values: panels of 32 rows (of the left factor) or columns (of the
// right one), `inner` values long, padded with zeros.
class TileFactor {
 public:
  static constexpr std::int64_t kWidth = 32;  // of a panel

  std::int64_t inner() const { return inner_; }
  std::int64_t panels() const { return (width_ + kWidth - 1) / kWidth; }
  // The part of a panel that begins `inner` values deep, a multiple of 32.
  const std::uint16_t* panel(std::int64_t index, std::int64_t inner) const;

 protected:
  // Grows as needed; a smaller factor later does not allocate.
  void make_room(std::int64_t width, std::int64_t inner);
  std::uint16_t* panel(std::int64_t index);

 private:
  struct alignas(64) Line {
    std::uint16_t values[32];
  };
  std::int64_t width_ = 0;
  std::int64_t inner_ = 0;
  std::vector<Line> lines_;
};

class TileLeft : public TileFactor {  // [rows, inner]
 public:
  void pack(const TileSource& source, std::int64_t rows, std::int64_t inner);
};

class TileRight : public TileFactor {  // [inner, columns]
 public:
  void pack(const TileSource& source, std::int64_t inner, std::int64_t columns);
  // The same by several threads: one calls begin, then each packs some of the panels.
  void begin(std::int64_t inner, std::int64_t columns);
  void pack_panels(const TileSource& source, std::int64_t columns, std::int64_t first,
                   std::int64_t last);
};

// `stride` values from a row of `result` to the next; blocks are 32 x 32. Only where
// has_tile_products().
void multiply_tiles(const ScaledProduct& shape, const TileLeft& left, const TileRight& right,
                    float* result, std::int64_t stride);

// Copies the blocks of 16 x 16 below the diagonal of a square matrix to their place above it.
void mirror_lower(float* matrix, std::int64_t size);

void round_values(const float* values, std::int64_t count, std::uint16_t* rounded);
void widen_values(const std::uint16_t* rounded, std::int64_t count, float* values);

}  // namespace needle
