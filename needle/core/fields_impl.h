// The templates behind fields.h. What does not depend on the struct's type lies in fields.cpp.
#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "needle/core/fields.h"

namespace needle::internal {

// Where a value stands: the source ("configs/tiny.json") and the path in it
// ("optimizer.adam.peak_lr").
struct FieldPlace {
  std::string_view where;
  std::string path;

  FieldPlace child(std::string_view name) const;
  FieldPlace item(std::size_t index) const;
};

bool read_bool(const Json& json, const FieldPlace& place);
std::int64_t read_signed(const Json& json, const FieldPlace& place, std::int64_t min,
                         std::int64_t max);
std::uint64_t read_unsigned(const Json& json, const FieldPlace& place, std::uint64_t max);
double read_double(const Json& json, const FieldPlace& place);
CountOrAuto read_count_or_auto(const Json& json, const FieldPlace& place);
std::string read_string(const Json& json, const FieldPlace& place);
const Json& read_array(const Json& json, const FieldPlace& place);
[[noreturn]] void throw_unknown_enum(const std::string& got, const std::string& valid,
                                     const FieldPlace& place);
Json finite_to_json(double value, std::string_view path);

// Hands out the members of an object and at the end refuses those that nobody asked for.
class ObjectReader {
 public:
  ObjectReader(const Json& json, const FieldPlace& place);
  const Json* take(std::string_view name);  // nullptr if absent
  void finish() const;

 private:
  const Json& json_;
  const FieldPlace& place_;
  std::vector<std::string> known_;
};

// {"a": {"b": value}} for "a.b=value"; `as_text` takes the value as a string whatever it looks
// like.
struct Override {
  Json json;
  bool is_text;
};
Override parse_override(std::string_view assignment, bool as_text);

template <typename T>
inline constexpr bool kIsOptional = false;
template <typename T>
inline constexpr bool kIsOptional<std::optional<T>> = true;
template <typename T>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;

template <typename T>
void read_value(const Json& json, const FieldPlace& place, T& value) {
  if constexpr (FieldStruct<T>) {
    ObjectReader reader(json, place);
    T::visit_fields(value, [&](std::string_view name, auto& field, std::string_view) {
      if (const Json* member = reader.take(name)) {
        read_value(*member, place.child(name), field);
      }
    });
    reader.finish();
  } else if constexpr (kIsOptional<T>) {
    if (json.is_null()) {
      value.reset();
      return;
    }
    if (!value) {
      value.emplace();
    }
    read_value(json, place, *value);
  } else if constexpr (kIsVector<T>) {
    T items;
    for (const Json& item : read_array(json, place)) {
      typename T::value_type element{};
      read_value(item, place.item(items.size()), element);
      items.push_back(std::move(element));
    }
    value = std::move(items);
  } else if constexpr (std::same_as<T, bool>) {
    value = read_bool(json, place);
  } else if constexpr (std::signed_integral<T>) {
    value = static_cast<T>(
        read_signed(json, place, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  } else if constexpr (std::unsigned_integral<T>) {
    value = static_cast<T>(read_unsigned(json, place, std::numeric_limits<T>::max()));
  } else if constexpr (std::floating_point<T>) {
    value = static_cast<T>(read_double(json, place));
  } else if constexpr (std::same_as<T, CountOrAuto>) {
    value = read_count_or_auto(json, place);
  } else if constexpr (std::is_enum_v<T>) {
    const std::string text = read_string(json, place);
    const auto parsed = EnumTable<T>::value.parse(text);
    if (!parsed) {
      throw_unknown_enum(text, EnumTable<T>::value.list(), place);
    }
    value = *parsed;
  } else {
    static_assert(std::same_as<T, std::string> || std::same_as<T, std::filesystem::path>,
                  "fields.h lists the types that a field may have");
    value = read_string(json, place);
  }
}

template <typename T>
Json write_value(const T& value, std::string_view path) {
  if constexpr (FieldStruct<T>) {
    Json json = Json::object();
    T::visit_fields(value, [&](std::string_view name, const auto& field, std::string_view) {
      json[std::string(name)] = write_value(field, name);
    });
    return json;
  } else if constexpr (kIsOptional<T>) {
    return value ? write_value(*value, path) : Json(nullptr);
  } else if constexpr (kIsVector<T>) {
    Json json = Json::array();
    for (const auto& item : value) {
      json.push_back(write_value<typename T::value_type>(item, path));
    }
    return json;
  } else if constexpr (std::floating_point<T>) {
    return finite_to_json(static_cast<double>(value), path);
  } else if constexpr (std::is_enum_v<T>) {
    return Json(std::string(EnumTable<T>::value.name(value)));
  } else if constexpr (std::same_as<T, CountOrAuto>) {
    return value.is_auto ? Json("auto") : Json(value.count);
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    return Json(value.string());
  } else {
    return Json(value);
  }
}

template <typename T>
std::string type_name() {
  if constexpr (FieldStruct<T>) {
    return "object";
  } else if constexpr (kIsOptional<T>) {
    return type_name<typename T::value_type>() + " or null";
  } else if constexpr (kIsVector<T>) {
    return "list of " + type_name<typename T::value_type>();
  } else if constexpr (std::same_as<T, bool>) {
    return "bool";
  } else if constexpr (std::integral<T>) {
    return "integer";
  } else if constexpr (std::floating_point<T>) {
    return "number";
  } else if constexpr (std::same_as<T, CountOrAuto>) {
    return "integer or auto";
  } else if constexpr (std::is_enum_v<T>) {
    return "one of " + EnumTable<T>::value.list();
  } else if constexpr (std::same_as<T, std::filesystem::path>) {
    return "path";
  } else {
    return "string";
  }
}

// Rows for `value` itself (unless it is a struct, whose fields stand for it) and for structs inside
// it.
template <typename T>
void describe_value(const T& value, const std::string& path, std::string_view description,
                    std::vector<FieldDoc>& rows) {
  if constexpr (FieldStruct<T>) {
    T::visit_fields(value, [&](std::string_view name, const auto& field, std::string_view text) {
      describe_value(field, path.empty() ? std::string(name) : path + "." + std::string(name), text,
                     rows);
    });
  } else {
    rows.push_back({.path = path,
                    .type = type_name<T>(),
                    .default_value = write_value(value, path).dump(),
                    .description = std::string(description)});
    if constexpr (kIsOptional<T>) {
      if constexpr (FieldStruct<typename T::value_type>) {
        describe_value(value.value_or(typename T::value_type{}), path, description, rows);
      }
    } else if constexpr (kIsVector<T>) {
      if constexpr (FieldStruct<typename T::value_type>) {
        describe_value(typename T::value_type{}, path + "[]", description, rows);
      }
    }
  }
}

}  // namespace needle::internal

namespace needle {

template <FieldStruct T>
T from_json(const Json& json, std::string_view where, const T& defaults) {
  T value = defaults;
  internal::read_value(json, {.where = where, .path = {}}, value);
  return value;
}

template <FieldStruct T>
Json to_json(const T& value) {
  return internal::write_value(value, "");
}

template <FieldStruct T>
void apply_override(T& value, std::string_view assignment) {
  const internal::Override first = internal::parse_override(assignment, /*as_text=*/false);
  const std::string where = "--set " + std::string(assignment);
  try {
    value = from_json<T>(first.json, where, value);
  } catch (const ConfigError&) {
    // `name=123` for a string field: the text was meant. If that fits no better, the first message
    // stands.
    if (first.is_text) {
      throw;
    }
    std::optional<T> as_text;
    try {
      as_text =
          from_json<T>(internal::parse_override(assignment, /*as_text=*/true).json, where, value);
    } catch (const ConfigError&) {
      as_text.reset();
    }
    if (!as_text) {
      throw;
    }
    value = *std::move(as_text);
  }
}

template <FieldStruct T>
std::vector<FieldDoc> describe_fields(const T& defaults) {
  std::vector<FieldDoc> rows;
  internal::describe_value(defaults, "", "", rows);
  return rows;
}

}  // namespace needle
