#include "needle/core/version.h"

namespace needle {

std::string_view version() noexcept { return NEEDLE_VERSION; }

}  // namespace needle
