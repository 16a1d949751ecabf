// One table per enum gives printing, parsing and the list of valid names.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace needle {

template <typename Enum, std::size_t N>
struct EnumNames {
  std::array<std::pair<Enum, std::string_view>, N> entries;

  constexpr std::string_view name(Enum value) const {
    for (const auto& [candidate, text] : entries) {
      if (candidate == value) {
        return text;
      }
    }
    return "?";
  }
  constexpr std::optional<Enum> parse(std::string_view text) const {
    for (const auto& [candidate, name] : entries) {
      if (name == text) {
        return candidate;
      }
    }
    return std::nullopt;
  }
  std::string list() const {  // "drelu, swiglu, geglu"
    std::string names;
    for (const auto& [candidate, name] : entries) {
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    return names;
  }
};

// An enum that appears in a config specialises this: `static constexpr const auto& value =
// kActivationNames;`
template <typename Enum>
struct EnumTable;

}  // namespace needle
