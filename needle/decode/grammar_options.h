// What a request may ask of a grammar, and what it is told: light, for those who only pass it on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/core/enum_names.h"

namespace needle {

// Which free strings must be spans of the query. A schema's "x-grounded": true or false goes
// before, and holds for numbers, too.
enum class Grounding {
  kOff,   // none but those
  kAuto,  // all without a form of their own (no enum, pattern, format or length)
};
inline constexpr EnumNames<Grounding, 2> kGroundingNames{
    {{{Grounding::kOff, "off"}, {Grounding::kAuto, "auto"}}}};

struct GrammarOptions {
  JsonEscapes escapes = JsonEscapes::kAscii;  // how listed texts and keys are spelled
  Grounding grounding = Grounding::kOff;
  // Parameters that are grounded besides: "tool.parameter", or "tool" for all strings and numbers
  // of one.
  std::vector<std::string> grounded;
  int recursion_depth = 4;  // how often a schema may hold itself
};

// How many calls an answer has, and of which tools.
struct CallLimits {
  std::int64_t min_calls = 0;
  std::int64_t max_calls = -1;      // -1: any number
  std::optional<std::string> tool;  // only this one; its name as in the grammar's tools
};

// Something of a schema that the output need not obey.
struct Unenforced {
  std::string path;
  std::string keyword;
  std::string reason;
};

}  // namespace needle
