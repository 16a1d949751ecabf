// Any bytes: the restricted reader refuses or returns data, never crashes, never executes.
#include <cstdint>
#include <span>

#include "needle/core/error.h"
#include "needle/core/pickle.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    needle::read_pickle(std::as_bytes(std::span(data, size)));
  } catch (const needle::Error&) {
  }
  return 0;
}
