#include "needle/server/tool_reader.h"

#include <set>

#include "needle/core/error.h"
#include "needle/server/api_error.h"
#include "needle/server/body.h"

namespace needle {

ReadTools read_tools(const JsonValue& body, const ServerLimits& limits) {
  const JsonValue* given = body.find("tools");
  if (given == nullptr || given->is_null()) {
    return {};
  }
  if (given->is_array() && given->items().size() > limits.tools) {
    throw bad_request("tools", format("{} tools: at most {} are allowed; rank them with /v1/rank "
                                      "in parts and send the best",
                                      given->items().size(), limits.tools));
  }
  ReadTools read;
  try {
    read.tools = parse_tools(*given);
  } catch (const DataError& error) {
    throw bad_request("tools", error.what());
  }
  if (read.tools.size() > limits.tools) {
    throw bad_request("tools",
                      format("{} tools: at most {} are allowed", read.tools.size(), limits.tools));
  }
  std::set<std::string_view> names;
  read.json = "[";
  for (std::size_t i = 0; i < read.tools.size(); ++i) {
    const Tool& tool = read.tools[i];
    if (!names.insert(tool.name).second) {
      throw bad_request(format("tools[{}].name", i),
                        format("a tool called {} is declared twice", tool.name));
    }
    const std::string text = write_compact(tool.declared);
    if (text.size() > limits.tool_bytes) {
      throw bad_request(format("tools[{}]", i),
                        format("longer than the {} bytes allowed", limits.tool_bytes));
    }
    read.json += (i == 0 ? "" : ",") + text;
    read.strict |= read_bool(tool.declared, "strict").value_or(false);
  }
  read.json += ']';
  return read;
}

std::shared_ptr<const ReadTools> ToolReader::read(const JsonValue& body) {
  const JsonValue* given = body.find("tools");
  if (given == nullptr || given->is_null()) {
    return std::make_shared<const ReadTools>();
  }
  return kept_.find_or_make(write_compact(*given), [&] {
    return std::make_shared<const ReadTools>(read_tools(body, limits_));
  });
}

}  // namespace needle
