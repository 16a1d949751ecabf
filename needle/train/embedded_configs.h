// The files of configs/, built into the program so that it needs no folder beside it. The
// definition is generated.
#pragma once

#include <span>
#include <string_view>

namespace needle {

struct EmbeddedConfig {
  std::string_view name;  // path below configs/ without ".json"
  std::string_view text;
};

std::span<const EmbeddedConfig> embedded_configs();

}  // namespace needle
