#include "needle/server/json_rpc.h"

#include <utility>

namespace needle {
namespace {

JsonValue envelope() { return JsonValue::object({{"jsonrpc", JsonValue::string("2.0")}}); }

std::string line(const JsonValue& message) { return write_compact(message, JsonEscapes::kUtf8); }

}  // namespace

std::string rpc_request(std::int64_t id, std::string_view method, JsonValue params) {
  JsonValue message = envelope();
  message.set("id", JsonValue::integer(id));
  message.set("method", JsonValue::string(std::string(method)));
  message.set("params", std::move(params));
  return line(message);
}

std::string rpc_notification(std::string_view method, JsonValue params) {
  JsonValue message = envelope();
  message.set("method", JsonValue::string(std::string(method)));
  message.set("params", std::move(params));
  return line(message);
}

std::string rpc_result(const JsonValue& id, JsonValue result) {
  JsonValue message = envelope();
  message.set("id", id);
  message.set("result", std::move(result));
  return line(message);
}

std::string rpc_error(const JsonValue& id, RpcError code, std::string_view text) {
  JsonValue message = envelope();
  message.set("id", id);
  message.set("error",
              JsonValue::object({{"code", JsonValue::integer(static_cast<std::int64_t>(code))},
                                 {"message", JsonValue::string(std::string(text))}}));
  return line(message);
}

}  // namespace needle
