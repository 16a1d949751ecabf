// Rows of a finetuning: made from tools, taken over from a file, written by hand; and read again
// to be looked at.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/calls/tool.h"
#include "needle/core/file.h"
#include "needle/core/json.h"

namespace needle {

inline constexpr std::int64_t kMaxMadeRows = 20'000;

// Rows 0 to count - 1 of needle/synth. Throws DataError for tools that no rows can be made from.
void write_synth_rows(AtomicFileWriter& rows, std::string_view tools, std::int64_t count,
                      std::uint64_t seed);

// The lines of a JSONL file, plain or gzip, as they are. Throws FormatError for damaged gzip.
void copy_rows(AtomicFileWriter& rows, const std::filesystem::path& file);

// Every tool that the rows offer, the first declaration of each name: a JSON array.
std::string tools_of_rows(const std::filesystem::path& file);

// One row as JSONL without a newline, from {"query","answers"} and, optionally, "tools" of its own;
// else it offers the called ones of `tools` and the first others, kOfferedTools in all. Throws
// DataError with the path of what is wrong, in a row called `path`.
std::string row_line(const JsonValue& row, const std::vector<Tool>& tools, std::string_view path);
inline constexpr std::size_t kOfferedTools = 4;

// {"first", "rows": [{"line","query","answers","tools":[names]} | {"line","problem"}]}.
Json rows_page(const std::filesystem::path& file, std::int64_t first, std::int64_t count);

}  // namespace needle
