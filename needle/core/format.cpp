#include "needle/core/format.h"

#include <fmt/args.h>
#include <fmt/format.h>

namespace needle {

std::string format_args(std::string_view pattern, std::span<const FormatArg> args) {
  fmt::dynamic_format_arg_store<fmt::format_context> store;
  store.reserve(args.size(), 0);
  for (const FormatArg& arg : args) {
    std::visit(
        [&store](const auto& value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>) {
            store.push_back(std::string_view(value));
          } else {
            store.push_back(value);
          }
        },
        arg.value());
  }
  try {
    return fmt::vformat(fmt::string_view(pattern.data(), pattern.size()), store);
  } catch (const std::exception& error) {
    return std::string(pattern) + " [format: " + error.what() + "]";
  }
}

}  // namespace needle
