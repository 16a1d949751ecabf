// The version of this project.
#pragma once

#include <string_view>

namespace needle {

// "MAJOR.MINOR.PATCH", as CMakeLists.txt has it.
std::string_view version() noexcept;

}  // namespace needle
