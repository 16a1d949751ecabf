// Tool names in snake_case for the model, and back for the user (specification, section 8).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"

namespace needle {

std::string to_snake_case(std::string_view name);

enum class NameStyle {
  kUnique,     // names that would collide or vanish keep a unique form (…_2, tool_3)
  kReference,  // as the reference: the later of two colliding names wins, a name may become empty
};

// Tools with names in snake_case, and how to undo it.
struct NormalizedTools {
  std::string tools_json;  // compact; the input unchanged if it is not a JSON array of tools
  std::vector<std::pair<std::string, std::string>>
      original_by_snake;  // in order of the tools; each snake name once
};
// kUnique unwraps the tools first (see unwrap_tools), leaves out their "templates", lets a tool
// that already has a snake_case name keep it, and gives tools of the same original name the same
// form. Never throws.
NormalizedTools normalize_tool_names(std::string_view tools_json,
                                     NameStyle style = NameStyle::kUnique,
                                     JsonEscapes escapes = JsonEscapes::kAscii);

// Output text with the original names. Text that parses is written compactly again; other text gets
// plain replacement, longest snake name first.
std::string restore_tool_names(std::string_view text, const NormalizedTools& tools,
                               JsonEscapes escapes = JsonEscapes::kAscii);

}  // namespace needle
