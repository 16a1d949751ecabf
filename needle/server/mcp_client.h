// Tools of other MCP servers, started by us and spoken to over stdio
// (https://modelcontextprotocol.io/specification, "stdio transport").
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/server/child_process.h"

namespace needle {

struct McpServerConfig {
  std::string name;
  std::vector<std::string> command;  // the program and its arguments
  std::vector<std::pair<std::string, std::string>> environment;
};

// {"mcpServers": {"name": {"command": "...", "args": [...], "env": {...}}}}, as other MCP hosts
// have it. Throws FileError, ConfigError naming the field.
std::vector<McpServerConfig> read_mcp_config(const std::filesystem::path& path);

// `line` in words: blanks separate, '...' and "..." hold together, a backslash takes the next
// character as it is. Named after its program. Throws ConfigError.
McpServerConfig mcp_command(std::string_view line);

// The newest protocol version that is spoken here, both as client and as server.
inline constexpr std::string_view kMcpVersion = "2025-06-18";
bool speaks_mcp_version(std::string_view version);

// Thread-safe: one request at a time.
class McpClient {
 public:
  // Starts the server and greets it. Throws Error naming the server if it fails, does not answer
  // within `timeout`, or answers with an error; so do the others.
  McpClient(McpServerConfig config, std::chrono::milliseconds timeout);

  const std::string& name() const { return config_.name; }
  JsonValue::Array list_tools();  // as the server declares them, all pages
  // The result as the server gives it: {"content":[...],"isError":...}. `cancelled` is asked now
  // and then; true ends the wait and tells the server.
  JsonValue call_tool(std::string_view tool, const JsonValue& arguments,
                      const std::function<bool()>& cancelled);

 private:
  JsonValue request(std::string_view method, JsonValue params,
                    const std::function<bool()>& cancelled = {});
  JsonValue wait_for_reply(std::int64_t id, const std::function<bool()>& cancelled);
  void answer(const JsonValue& message);  // a request of the server's own
  void greet();
  [[noreturn]] void fail(const std::string& message) const;

  McpServerConfig config_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::unique_ptr<ChildProcess> process_;
  std::int64_t last_id_ = 0;
};

}  // namespace needle
