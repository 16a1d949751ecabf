// Any bytes: parsing never crashes, and what parses is a fixed point of write and parse.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "needle/calls/json_value.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const needle::JsonParseResult parsed = needle::parse_json_value(text);
  if (parsed.value) {
    for (const auto escapes : {needle::JsonEscapes::kAscii, needle::JsonEscapes::kUtf8}) {
      const std::string written = needle::write_compact(*parsed.value, escapes);
      const needle::JsonParseResult again = needle::parse_json_value(written);
      if (!again.value || needle::write_compact(*again.value, escapes) != written) {
        std::abort();
      }
    }
  }
  return 0;
}
