// Reads fields of a request's JSON body. Every function throws ApiError 400 that names the field.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"

namespace needle {

// The body as an object: JSON, UTF-8, nested at most kMaxJsonDepth deep.
JsonValue parse_body(std::string_view body);

// Nothing for an absent field and for null. `path` is what messages call the field.
std::optional<std::string> read_string(const JsonValue& object, std::string_view key);
std::optional<bool> read_bool(const JsonValue& object, std::string_view key);
std::optional<std::int64_t> read_integer(const JsonValue& object, std::string_view key,
                                         std::int64_t least, std::int64_t most);

// Members of the body that are not in `known`, in their order.
std::vector<std::string> unknown_fields(const JsonValue& body,
                                        std::span<const std::string_view> known);

}  // namespace needle
