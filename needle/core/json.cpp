#include "needle/core/json.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

constexpr std::size_t kMaxDepth = 200;

// "12:7" for a byte offset; lines and columns count from 1, columns in bytes.
std::string line_and_column(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
  return format("{}:{}", line, before.size() - line_start + 1);
}

// Looks at brackets outside strings alone: whatever else is wrong, the parser finds.
void check_depth(std::string_view text, std::string_view where) {
  std::size_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) {
        throw FormatError(format("{}:{}: JSON nested more than {} deep", where,
                                 line_and_column(text, i), kMaxDepth));
      }
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ..."
// without its head.
std::string_view reason_of(std::string_view message) {
  const std::size_t column = message.find(", column ");
  const std::size_t start = message.find(": ", column == std::string_view::npos ? 0 : column);
  if (start != std::string_view::npos) {
    return message.substr(start + 2);
  }
  const std::size_t bracket = message.find("] ");
  return bracket == std::string_view::npos ? message : message.substr(bracket + 2);
}

}  // namespace

Json parse_json(std::string_view text, std::string_view where) {
  check_depth(text, where);
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const Json::parser_callback_t refuse_duplicates = [&](int, Json::parse_event_t event,
                                                        Json& value) {
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw FormatError(format("{}: the key \"{}\" occurs twice in one JSON object", where, key));
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), refuse_duplicates);
  } catch (const nlohmann::json::parse_error& error) {
    const std::size_t offset = error.byte == 0 ? 0 : error.byte - 1;
    throw FormatError(format("{}:{}: not valid JSON: {}", where, line_and_column(text, offset),
                             reason_of(error.what())));
  } catch (const nlohmann::json::exception& error) {  // a number out of range
    throw FormatError(format("{}: not valid JSON: {}", where, reason_of(error.what())));
  }
}

Json read_json_file(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

void write_json_file(const std::filesystem::path& path, const Json& value) {
  std::string text;
  try {
    text = value.dump(2);
  } catch (const nlohmann::json::exception& error) {  // a string that is not UTF-8
    throw FormatError(format("{}: cannot be written as JSON: {}", path, reason_of(error.what())));
  }
  write_file_atomic(path, text + "\n");
}

}  // namespace needle
