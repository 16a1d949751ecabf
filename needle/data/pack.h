// First-fit decreasing: several examples in one row of fixed length (specification, section 4).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace needle {

struct ExampleLength {
  std::int64_t encoder = 0;
  std::int64_t decoder = 0;
};

struct PackLimits {
  std::int64_t max_enc_len = 1024;
  std::int64_t max_dec_len = 512;
};

// Which examples lie in which row, in order. Examples are taken by decreasing encoder length, the
// lower index first among equals, and put into the first row where both lengths fit. Throws Error
// if one fits into no row. About O(n log n): a tree over the rows' free space finds the first fit.
std::vector<std::vector<std::int64_t>> pack_rows(std::span<const ExampleLength> lengths,
                                                 const PackLimits& limits);

}  // namespace needle
