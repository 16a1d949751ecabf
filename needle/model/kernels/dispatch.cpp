#include <cstdlib>
#include <string_view>

#include "needle/core/cpu_features.h"
#include "needle/core/error.h"
#include "needle/model/kernels/half_product.h"
#include "needle/model/kernels/kernels.h"

namespace needle {
namespace {

// Best first.
constexpr const RowKernels* kTables[] = {
#if defined(__x86_64__)
    &kAvx512RowKernels,
    &kAvx2RowKernels,
#endif
    &kGenericRowKernels,
};

const RowKernels& choose() {
  const char* name = std::getenv("NEEDLE_ISA");
  if (name != nullptr && *name != '\0') {
    if (const RowKernels* table = find_row_kernels(name)) {
      return *table;
    }
    throw ConfigError(format("NEEDLE_ISA={}: unknown, or this CPU has no such instructions", name));
  }
  for (const RowKernels* table : kTables) {
    if (table->supported()) {
      return *table;
    }
  }
  return kGenericRowKernels;
}

}  // namespace

const RowKernels* find_row_kernels(std::string_view name) {
  // The engine has more tables; to training these are the nearest.
  if (name == "scalar" || name == "neon") {
    name = "generic";
  } else if (name.starts_with("avx512")) {
    name = "avx512";
  }
  for (const RowKernels* table : kTables) {
    if (table->name == name && table->supported()) {
      return table;
    }
  }
  return nullptr;
}

bool has_half_products() {
#ifdef NEEDLE_HALF_PRODUCTS
  static const bool here = has_avx512_fp16();
  return here;
#else
  return false;  // the compiler does not know the instructions
#endif
}

const RowKernels& row_kernels() {
  static const RowKernels& chosen = choose();
  return chosen;
}

}  // namespace needle
