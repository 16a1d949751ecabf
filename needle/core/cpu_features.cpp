#include "needle/core/cpu_features.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace needle {
#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// Which registers the operating system saves (XCR0); the caller made sure of OSXSAVE.
std::uint64_t saved_state() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32U) | low;
}

constexpr std::uint64_t kAvx512State = 0xE6;

bool made_by_amd() {
  const Registers r = cpuid(0, 0);
  return std::memcmp(&r.ebx, "Auth", 4) == 0 && std::memcmp(&r.edx, "enti", 4) == 0;
}

}  // namespace

bool has_fast_bfloat16() {
  constexpr std::uint64_t kTileState = 0x60000;
  if ((cpuid(1, 0).ecx & bit_OSXSAVE) == 0) {
    return false;
  }
  const std::uint64_t saved = saved_state();
  constexpr unsigned kAmxBf16 = 1U << 22U, kAvx512Bf16 = 1U << 5U;
  const bool amx = (cpuid(7, 0).edx & kAmxBf16) != 0 && (saved & kTileState) == kTileState;
  const bool avx512 = (cpuid(7, 1).eax & kAvx512Bf16) != 0 &&
                      (saved & kAvx512State) == kAvx512State && made_by_amd();
  return amx || avx512;
}

bool has_avx512_fp16() {
  constexpr unsigned kFp16 = 1U << 23U;                                  // edx
  constexpr unsigned kBasics = (1U << 16U) | (1U << 17U) | (1U << 31U);  // ebx: F, DQ, VL
  if ((cpuid(1, 0).ecx & bit_OSXSAVE) == 0 || (saved_state() & kAvx512State) != kAvx512State) {
    return false;
  }
  const Registers features = cpuid(7, 0);
  return (features.edx & kFp16) != 0 && (features.ebx & kBasics) == kBasics;
}

#else

bool has_fast_bfloat16() { return false; }
bool has_avx512_fp16() { return false; }

#endif
}  // namespace needle
