#include <cstdlib>
#include <string>
#include <string_view>

#include "needle/core/error.h"
#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {
namespace {

// Best first.
constexpr const Kernels* kTables[] = {
#if defined(__x86_64__)
    &kAvx512AmxKernels, &kAvx512VnniKernels, &kAvx512Kernels, &kAvx2Kernels,
#elif defined(__aarch64__)
    &kNeonKernels,
#endif
    &kGenericKernels,   &kScalarKernels,
};

std::string names() {
  std::string list;
  for (const Kernels* table : kTables) {
    list += (list.empty() ? "" : ", ") + std::string(table->name);
  }
  return list;
}

}  // namespace

const Kernels& find_kernels(const char* name) {
  for (const Kernels* table : kTables) {
    if (std::string_view(table->name) == name) {
      if (!table->supported()) {
        throw ConfigError(
            format("NEEDLE_ISA: this CPU has no {}; choose another of {}", name, names()));
      }
      return *table;
    }
  }
  throw ConfigError(
      format("NEEDLE_ISA: unknown instruction set {}; choose one of {}", name, names()));
}

const Kernels& select_kernels() {
  const char* name = std::getenv("NEEDLE_ISA");
  if (name != nullptr && *name != '\0') {
    return find_kernels(name);
  }
  for (const Kernels* table : kTables) {
    if (table->supported()) {
      return *table;
    }
  }
  return kScalarKernels;
}

}  // namespace needle::runtime
