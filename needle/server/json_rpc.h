// JSON-RPC 2.0 messages as lines, the way MCP's stdio transport carries them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "needle/calls/json_value.h"

namespace needle {

enum class RpcError : std::int64_t {
  kParse = -32700,
  kInvalidRequest = -32600,
  kMethodNotFound = -32601,
  kInvalidParams = -32602,
  kInternal = -32603,
};

// Without a line's end.
std::string rpc_request(std::int64_t id, std::string_view method, JsonValue params);
std::string rpc_notification(std::string_view method, JsonValue params);
std::string rpc_result(const JsonValue& id, JsonValue result);
std::string rpc_error(const JsonValue& id, RpcError code, std::string_view message);

}  // namespace needle
