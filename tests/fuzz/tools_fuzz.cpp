// Any bytes: reading tools and calls, normalising names and validating never crash.
#include <cstdint>
#include <string_view>

#include "needle/calls/call.h"
#include "needle/calls/tool.h"
#include "needle/calls/tool_name.h"
#include "needle/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const needle::NormalizedTools normalized = needle::normalize_tool_names(text);
  needle::restore_tool_names(text, normalized);
  try {
    const auto tools = needle::parse_tools_text(text);
    needle::validate_calls(needle::parse_calls_text(text), tools);
  } catch (const needle::Error&) {
  }
  return 0;
}
