// What the products on tiles and in half precision have in common.
#pragma once

#include <cstdint>

namespace needle {

// result [rows, columns] = alpha left right + beta * result. beta 0 does not read `result`. With
// `lower`, only the blocks that touch the lower triangle.
struct ScaledProduct {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  float alpha = 1.0F;
  float beta = 0.0F;
  bool lower = false;
};

}  // namespace needle
