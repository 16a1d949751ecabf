// From C++ types to JSON Schema, and from a call's arguments to C++ values.
//
// A struct describes its fields once, as core/fields.h wants it; the description is what the model
// reads, and limits may follow it:
//
//   enum class Repeat { kOnce, kDaily };
//   inline constexpr EnumNames<Repeat, 2> kRepeatNames{...};  // and EnumTable<Repeat>, see there
//   struct SetAlarm {
//     int hour = 0;
//     std::optional<std::string> label;
//     template <class Self, class Visitor>
//     static void visit_fields(Self& self, Visitor&& visit) {
//       visit("hour", self.hour, "Hour of the day", FieldLimits{.minimum = 0, .maximum = 23});
//       visit("label", self.label, "What it is for");
//     }
//   };
//
// A field may be bool, an integer, a floating-point number, std::string, an enum with an EnumTable,
// another such struct, std::vector of these or std::optional of any: only an optional one may be
// left out of a call.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/core/fields.h"

namespace needle {

// What a value must keep to besides its type; of a vector or optional, each of its items.
struct FieldLimits {
  std::optional<double> minimum;  // of a number
  std::optional<double> maximum;
  std::optional<std::int64_t> min_length;  // of a string, in characters
  std::optional<std::int64_t> max_length;
  std::optional<std::int64_t> min_items;  // of a vector
  std::optional<std::int64_t> max_items;
  std::string_view pattern;  // of a string: a regular expression that the grammar keeps it to
  std::string_view format;   // of a string: date, time, date-time, email, ...
};

namespace internal {

// {"type": type, limits...}
JsonValue leaf_schema(std::string_view type, const FieldLimits& limits);
JsonValue array_schema(JsonValue items, const FieldLimits& limits);
JsonValue enum_schema(std::vector<std::string_view> names);
// Adds a member to an object's schema: its description, and its name to "required" unless optional.
void add_property(JsonValue& schema, std::string_view name, std::string_view description,
                  bool required, JsonValue property);
JsonValue empty_object_schema();

[[noreturn]] void throw_argument(std::string_view path, std::string_view expected,
                                 const JsonValue& got);
bool read_bool_argument(const JsonValue& value, std::string_view path);
std::int64_t read_integer_argument(const JsonValue& value, std::string_view path,
                                   std::int64_t least, std::int64_t most);
double read_number_argument(const JsonValue& value, std::string_view path);
const std::string& read_string_argument(const JsonValue& value, std::string_view path);
const JsonValue::Array& read_array_argument(const JsonValue& value, std::string_view path);
void check_object_argument(const JsonValue& value, std::string_view path);
std::string child_path(std::string_view path, std::string_view name);
std::string item_path(std::string_view path, std::size_t index);

template <typename T>
JsonValue schema_of(const FieldLimits& limits = {}) {
  if constexpr (kIsOptional<T>) {
    return schema_of<typename T::value_type>(limits);
  } else if constexpr (kIsVector<T>) {
    return array_schema(schema_of<typename T::value_type>(limits), limits);
  } else if constexpr (FieldStruct<T>) {
    JsonValue schema = empty_object_schema();
    const T value{};
    T::visit_fields(value, [&schema](std::string_view name, const auto& field,
                                     std::string_view description, auto... own_limits) {
      using Field = std::remove_cvref_t<decltype(field)>;
      static_assert(sizeof...(own_limits) <= 1, "name, field, description, FieldLimits");
      add_property(schema, name, description, !kIsOptional<Field>, schema_of<Field>(own_limits...));
    });
    return schema;
  } else if constexpr (std::is_enum_v<T>) {
    std::vector<std::string_view> names;
    for (const auto& entry : EnumTable<T>::value.entries) {
      names.push_back(entry.second);
    }
    return enum_schema(std::move(names));
  } else if constexpr (std::same_as<T, bool>) {
    return leaf_schema("boolean", limits);
  } else if constexpr (std::integral<T>) {
    return leaf_schema("integer", limits);
  } else if constexpr (std::floating_point<T>) {
    return leaf_schema("number", limits);
  } else {
    static_assert(std::same_as<T, std::string>, "tool_schema.h lists the types of a field");
    return leaf_schema("string", limits);
  }
}

// Throws DataError naming `path` where the value does not fit the type: what a schema can't say,
// such as an integer that a C++ type is too small for.
template <typename T>
void read_argument(const JsonValue& value, const std::string& path, T& to) {
  if constexpr (kIsOptional<T>) {
    to.reset();
    if (!value.is_null()) {
      read_argument(value, path, to.emplace());
    }
  } else if constexpr (kIsVector<T>) {
    to.clear();
    for (const JsonValue& item : read_array_argument(value, path)) {
      typename T::value_type element{};
      read_argument(item, item_path(path, to.size()), element);
      to.push_back(std::move(element));
    }
  } else if constexpr (FieldStruct<T>) {
    check_object_argument(value, path);
    T::visit_fields(to, [&](std::string_view name, auto& field, auto&&...) {
      if (const JsonValue* member = value.find(name)) {
        read_argument(*member, child_path(path, name), field);
      }
    });
  } else if constexpr (std::is_enum_v<T>) {
    const auto parsed = EnumTable<T>::value.parse(read_string_argument(value, path));
    if (!parsed) {
      throw_argument(path, "one of " + EnumTable<T>::value.list(), value);
    }
    to = *parsed;
  } else if constexpr (std::same_as<T, bool>) {
    to = read_bool_argument(value, path);
  } else if constexpr (std::integral<T>) {
    using Limits = std::numeric_limits<T>;
    constexpr auto kMost =
        std::min(static_cast<std::uint64_t>(Limits::max()),
                 static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    to = static_cast<T>(read_integer_argument(value, path, static_cast<std::int64_t>(Limits::min()),
                                              static_cast<std::int64_t>(kMost)));
  } else if constexpr (std::floating_point<T>) {
    to = static_cast<T>(read_number_argument(value, path));
  } else {
    to = read_string_argument(value, path);
  }
}

// What a handler returns, as JSON: any type of a field, a JsonValue, or text.
template <typename T>
JsonValue result_value(const T& value) {
  if constexpr (std::same_as<T, JsonValue>) {
    return value;
  } else if constexpr (kIsOptional<T>) {
    return value ? result_value(*value) : JsonValue();
  } else if constexpr (kIsVector<T>) {
    JsonValue::Array items;
    for (const auto& item : value) {
      items.push_back(result_value<typename T::value_type>(item));
    }
    return JsonValue::array(std::move(items));
  } else if constexpr (FieldStruct<T>) {
    JsonValue object = JsonValue::object();
    T::visit_fields(value, [&object](std::string_view name, const auto& field, auto&&...) {
      object.set(name, result_value(field));
    });
    return object;
  } else if constexpr (std::is_enum_v<T>) {
    return JsonValue::string(std::string(EnumTable<T>::value.name(value)));
  } else if constexpr (std::same_as<T, bool>) {
    return JsonValue::boolean(value);
  } else if constexpr (std::integral<T>) {
    return JsonValue::number_from_text(std::to_string(value));  // an uint64 may pass int64's end
  } else if constexpr (std::floating_point<T>) {
    return JsonValue::number(static_cast<double>(value));
  } else {
    return JsonValue::string(std::string(value));
  }
}

}  // namespace internal
}  // namespace needle
