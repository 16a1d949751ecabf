// The page and the OpenAPI description, which lie in the program itself.
#pragma once

#include <string_view>

namespace needle {

// `name` as in needle/server/page. "" if there is no such file.
std::string_view embedded_file(std::string_view name);

}  // namespace needle
