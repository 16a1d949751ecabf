// The JSON type of configs, reports and file headers: keeps the order of keys. (The text that a
// model reads and writes has its own, needle/calls/json_value.h, because nlohmann's drops digits of
// long integers.)
#pragma once

#include <filesystem>
#include <string_view>

#include <nlohmann/json.hpp>

namespace needle {

using Json = nlohmann::ordered_json;

// `where` names the source in messages, e.g. a path. Throws FormatError with line and column.
// A nesting depth over 200 and a key that occurs twice in one object are refused.
Json parse_json(std::string_view text, std::string_view where);

Json read_json_file(const std::filesystem::path& path);

// Indented, with a final newline; atomic (see write_file_atomic).
void write_json_file(const std::filesystem::path& path, const Json& value);

}  // namespace needle
