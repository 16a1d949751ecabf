// `needle-serve mcp`: an MCP server over stdio that turns a text into checked calls of the tools of
// other MCP servers, and passes calls on to them if that is wanted.
#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/server/limits.h"
#include "needle/server/mcp_client.h"
#include "needle/server/model_store.h"
#include "needle/server/tool_shelf.h"

namespace needle {

struct McpRouterOptions {
  std::string model;     // "": the store's default
  bool forward = false;  // offer the tools themselves, too, and let `route` execute what it finds
  ServerLimits limits;
};

// Keeps references to all it is given.
class McpRouter {
 public:
  using Servers = std::vector<std::unique_ptr<McpClient>>;

  McpRouter(ModelStore& models, const ToolShelf& shelf, const Servers& servers,
            McpRouterOptions options);

  // Answers messages, one a line, until the input ends: each in its turn, while pings and
  // cancellations are heard at once.
  void run(std::istream& in, std::ostream& out);

  // The line that answers this one; "" if none does (notifications, replies). `cancelled` is asked
  // at every token. Never throws.
  std::string answer(std::string_view line, const std::function<bool()>& cancelled = {});

 private:
  JsonValue dispatch(std::string_view method, const JsonValue& params,
                     const std::function<bool()>& cancelled);
  JsonValue greeting(const JsonValue& params) const;
  JsonValue list_tools() const;
  JsonValue call_tool(const JsonValue& params, const std::function<bool()>& cancelled);
  JsonValue route(const JsonValue& arguments, const std::function<bool()>& cancelled);
  JsonValue forward(const ToolShelf::Origin& origin, const JsonValue& arguments,
                    const std::function<bool()>& cancelled);

  ModelStore& models_;
  const ToolShelf& shelf_;
  const Servers& servers_;
  McpRouterOptions options_;
};

}  // namespace needle
