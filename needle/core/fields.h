// A config struct describes its fields once; reading, writing, --set and the table in
// docs/config.md follow.
//
//   struct MuonConfig {
//     double peak_lr = 0.02;
//     bool nesterov = true;
//     template <class Self, class Visitor>
//     static void visit_fields(Self& self, Visitor&& visit) {
//       visit("peak_lr", self.peak_lr, "Learning rate after warmup");
//       visit("nesterov", self.nesterov, "Look ahead along the momentum");
//     }
//   };
//
// A field may be bool, an integer, double, std::string, std::filesystem::path, CountOrAuto, an enum
// with an EnumTable, std::optional or std::vector of these, or another such struct.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/core/error.h"
#include "needle/core/json.h"

namespace needle {

// A number of things, or "auto": the program finds it.
struct CountOrAuto {
  std::int64_t count = 0;
  bool is_auto = false;
  bool operator==(const CountOrAuto&) const = default;
};

template <typename T>
concept FieldStruct = requires(T& value) {
  T::visit_fields(value, [](auto&&...) {});
};

// The candidate with the least edit distance to `name`, or nothing if none is near.
std::optional<std::string> nearest_name(std::string_view name,
                                        std::span<const std::string> candidates);

// Reads `json` into a copy of `defaults`. Throws ConfigError naming `where` and the field path: an
// unknown key (with the nearest known name), a wrong type (with what was expected and what came),
// an integer out of range.
template <FieldStruct T>
T from_json(const Json& json, std::string_view where, const T& defaults = {});

// Every field, defaults included. Throws needle::Error on a number that is not finite.
template <FieldStruct T>
Json to_json(const T& value);

// Applies "a.b=c" to a config as JSON would: c is parsed as JSON and taken as a string if it is
// none or if the field wants text. Throws ConfigError as from_json does; `value` is then as before.
template <FieldStruct T>
void apply_override(T& value, std::string_view assignment);

// One row a leaf field: path, type, default as JSON, description. The source of docs/config.md.
struct FieldDoc {
  std::string path;
  std::string type;
  std::string default_value;
  std::string description;
};
template <FieldStruct T>
std::vector<FieldDoc> describe_fields(const T& defaults = {});

}  // namespace needle

#include "needle/core/fields_impl.h"
