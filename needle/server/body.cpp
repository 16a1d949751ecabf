#include "needle/server/body.h"

#include <algorithm>
#include <utility>

#include "needle/server/api_error.h"

namespace needle {
namespace {

const JsonValue* find_set(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

[[noreturn]] void wrong_kind(std::string_view key, std::string_view expected,
                             const JsonValue& got) {
  throw bad_request(std::string(key), format("expected {}, got {}", expected, excerpt(got)));
}

}  // namespace

JsonValue parse_body(std::string_view body) {
  if (body.empty()) {
    throw bad_request("", "the body is empty: expected a JSON object");
  }
  JsonParseResult parsed = parse_json_value(body);
  if (!parsed.value) {
    throw bad_request("", format("the body is not JSON: {}", parsed.error));
  }
  if (!parsed.value->is_object()) {
    throw bad_request(
        "", format("the body: expected a JSON object, got {}", kind_name(parsed.value->kind())));
  }
  return std::move(*parsed.value);
}

std::optional<std::string> read_string(const JsonValue& object, std::string_view key) {
  const JsonValue* value = find_set(object, key);
  if (value == nullptr) {
    return {};
  }
  if (!value->is_string()) {
    wrong_kind(key, "a string", *value);
  }
  return value->as_string();
}

std::optional<bool> read_bool(const JsonValue& object, std::string_view key) {
  const JsonValue* value = find_set(object, key);
  if (value == nullptr) {
    return {};
  }
  if (!value->is_bool()) {
    wrong_kind(key, "true or false", *value);
  }
  return value->as_bool();
}

std::optional<std::int64_t> read_integer(const JsonValue& object, std::string_view key,
                                         std::int64_t least, std::int64_t most) {
  const JsonValue* value = find_set(object, key);
  if (value == nullptr) {
    return {};
  }
  const auto number = value->is_integer() ? value->as_int64() : std::nullopt;
  if (!number || *number < least || *number > most) {
    wrong_kind(key, format("an integer from {} to {}", least, most), *value);
  }
  return number;
}

std::vector<std::string> unknown_fields(const JsonValue& body,
                                        std::span<const std::string_view> known) {
  std::vector<std::string> unknown;
  for (const auto& [key, value] : body.members()) {
    if (std::ranges::find(known, key) == known.end()) {
      unknown.push_back(key);
    }
  }
  return unknown;
}

}  // namespace needle
