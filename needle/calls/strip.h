// Edges of a text as Python's str.strip sees them.
#pragma once

#include <string_view>

namespace needle {

// `text` without white space at its ends: ASCII white space and separators, U+0085, U+00A0 and the
// other Unicode spaces. Empty for a blank text.
std::string_view strip_edges(std::string_view text);

}  // namespace needle
