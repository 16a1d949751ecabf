// What evaluation reads: independent of how data sets are stored.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace needle {

// One row with its reference. `tools` and `answers` are JSON text.
struct EvalCase {
  std::string query;
  std::string tools = "[]";
  std::string answers = "[]";
};

// Items of a JSON array, 1 for an object, 0 for everything else: the number of calls of an answer,
// or of tools on offer.
std::size_t count_items(std::string_view json_text);

}  // namespace needle
