// Rows of test sets {"query","tools","answers"} as a model should answer them.
#pragma once

#include <string>

#include "needle/calls/tool_name.h"

#include "tests/decode/grammar_support.h"

namespace needle::test {

struct ReferenceRow {
  explicit ReferenceRow(const std::string& line) {
    const JsonValue row = parsed(line);
    query = row.find("query")->as_string();
    tools_json = row.find("tools")->as_string();
    tools = normalize_tool_names(tools_json);
    answer = write_compact(parsed(row.find("answers")->as_string()));
    for (const auto& [snake, own] : tools.original_by_snake) {
      const std::string from = "\"name\":\"" + own + "\"", to = "\"name\":\"" + snake + "\"";
      for (auto at = answer.find(from); at != std::string::npos;
           at = answer.find(from, at + to.size())) {
        answer.replace(at, from.size(), to);
      }
    }
  }

  std::string query;
  std::string tools_json;
  NormalizedTools tools;
  std::string answer;  // with the tools' snake_case names
};

}  // namespace needle::test
