#include "needle/server/mcp_router.h"

#include <algorithm>
#include <array>
#include <utility>

#include "needle/calls/call.h"
#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/version.h"
#include "needle/decode/trace.h"
#include "needle/server/api_error.h"
#include "needle/server/body.h"
#include "needle/server/chat_response.h"
#include "needle/server/json_rpc.h"
#include "needle/server/tool_reader.h"

namespace needle {
namespace {

constexpr std::string_view kRoute = "route";

// What JSON-RPC tells the caller, as opposed to a tool's own failure.
struct RpcFailure : Error {
  RpcFailure(RpcError which, const std::string& message) : Error(message), code(which) {}
  RpcError code;
};

struct Cancelled {};

JsonValue text(std::string_view value) { return JsonValue::string(std::string(value)); }

JsonValue parsed(std::string_view json) { return *parse_json_value(json).value; }

JsonValue route_tool(bool forward) {
  JsonValue tool = parsed(R"({"name":"route","title":"Route a request to tools",
    "description":"Turns a request in plain language into calls of the available tools. Arguments are checked against the tools' schemas.",
    "inputSchema":{"type":"object","properties":{
      "query":{"type":"string","description":"What is wanted, in the user's words"},
      "tools":{"type":"array","items":{"type":"object"},"description":"Tools to choose from instead of the configured ones"},
      "required":{"type":"boolean","description":"At least one call"},
      "execute":{"type":"boolean","description":"Run the calls and return their results"}},
      "required":["query"]},
    "outputSchema":{"type":"object","properties":{
      "calls":{"type":"array","items":{"type":"object","properties":{"name":{"type":"string"},"arguments":{"type":"object"},"server":{"type":"string"}},"required":["name","arguments"]}},
      "problems":{"type":"array","items":{"type":"object"},"description":"What in the calls breaks their tools' schemas"},
      "confidence":{"type":"object"},
      "left_out":{"type":"integer","description":"Tools that did not fit the model's prompt and fit the request least"},
      "results":{"type":"array","items":{"type":"object"}}},
      "required":["calls","problems"]},
    "annotations":{"readOnlyHint":true,"openWorldHint":false}})");
  if (!forward) {
    auto& properties = tool.find("inputSchema")->find("properties")->members();
    std::erase_if(properties, [](const auto& member) { return member.first == "execute"; });
  } else {
    tool.find("annotations")->set("readOnlyHint", JsonValue::boolean(false));
  }
  return tool;
}

JsonValue tool_result(JsonValue structured) {
  JsonValue content = JsonValue::object(
      {{"type", text("text")}, {"text", text(write_compact(structured, JsonEscapes::kUtf8))}});
  return JsonValue::object({{"content", JsonValue::array({std::move(content)})},
                            {"structuredContent", std::move(structured)},
                            {"isError", JsonValue::boolean(false)}});
}

JsonValue tool_failure(std::string_view message) {
  JsonValue content = JsonValue::object({{"type", text("text")}, {"text", text(message)}});
  return JsonValue::object(
      {{"content", JsonValue::array({std::move(content)})}, {"isError", JsonValue::boolean(true)}});
}

JsonValue problem_list(const std::vector<CallProblem>& problems) {
  JsonValue list = JsonValue::array();
  for (const CallProblem& problem : problems) {
    list.items().push_back(
        JsonValue::object({{"path", text(problem.path)}, {"message", text(problem.message)}}));
  }
  return list;
}

}  // namespace

McpRouter::McpRouter(ModelStore& models, const ToolShelf& shelf, const Servers& servers,
                     McpRouterOptions options)
    : models_(models), shelf_(shelf), servers_(servers), options_(std::move(options)) {}

std::string McpRouter::answer(std::string_view line, const std::function<bool()>& cancelled) {
  const JsonParseResult message = parse_json_value(line);
  if (!message.value) {
    return rpc_error({}, RpcError::kParse, message.error);
  }
  const JsonValue* id = message.value->find("id");
  const JsonValue* method = message.value->find("method");
  const bool right_id = id == nullptr || id->is_string() || id->is_integer();
  if (!message.value->is_object() || !right_id || (method != nullptr && !method->is_string())) {
    return rpc_error({}, RpcError::kInvalidRequest, "expected one JSON-RPC 2.0 message");
  }
  if (id == nullptr || method == nullptr) {
    return "";
  }
  const JsonValue* params = message.value->find("params");
  try {
    return rpc_result(*id, dispatch(method->as_string(),
                                    params == nullptr ? JsonValue::object() : *params, cancelled));
  } catch (const Cancelled&) {
    return "";  // as the protocol wants it
  } catch (const RpcFailure& failure) {
    return rpc_error(*id, failure.code, failure.what());
  } catch (const std::exception& error) {
    return rpc_error(*id, RpcError::kInternal, error.what());
  }
}

JsonValue McpRouter::dispatch(std::string_view method, const JsonValue& params,
                              const std::function<bool()>& cancelled) {
  if (method == "initialize") {
    return greeting(params);
  }
  if (method == "ping") {
    return JsonValue::object();
  }
  if (method == "tools/list") {
    return list_tools();
  }
  if (method == "tools/call") {
    return call_tool(params, cancelled);
  }
  throw RpcFailure(RpcError::kMethodNotFound,
                   format("{}: not offered; expected initialize, ping, tools/list or tools/call",
                          excerpt(text(method))));
}

JsonValue McpRouter::greeting(const JsonValue& params) const {
  const JsonValue* wanted = params.find("protocolVersion");
  const bool known =
      wanted != nullptr && wanted->is_string() && speaks_mcp_version(wanted->as_string());
  JsonValue result = JsonValue::object();
  result.set("protocolVersion", known ? *wanted : text(kMcpVersion));
  result.set("capabilities", parsed(R"({"tools":{"listChanged":false}})"));
  result.set("serverInfo",
             JsonValue::object({{"name", text("needle")}, {"version", text(version())}}));
  result.set("instructions",
             text("Call the tool `route` with a request in plain language: it answers with calls "
                  "of the available tools, whose arguments are checked."));
  return result;
}

JsonValue McpRouter::list_tools() const {
  JsonValue list = JsonValue::array({route_tool(options_.forward)});
  if (options_.forward) {
    for (const JsonValue& tool : shelf_.tools().items()) {
      JsonValue offered = JsonValue::object({{"name", *tool.find("name")}});
      if (const JsonValue* description = tool.find("description")) {
        offered.set("description", *description);
      }
      const JsonValue* schema = tool.find("parameters");
      offered.set("inputSchema", schema == nullptr ? parsed(R"({"type":"object"})") : *schema);
      list.items().push_back(std::move(offered));
    }
  }
  return JsonValue::object({{"tools", std::move(list)}});
}

JsonValue McpRouter::call_tool(const JsonValue& params, const std::function<bool()>& cancelled) {
  const JsonValue* name = params.find("name");
  const JsonValue* given = params.find("arguments");
  const JsonValue arguments = given == nullptr ? JsonValue::object() : *given;
  if (name == nullptr || !name->is_string() || !arguments.is_object()) {
    throw RpcFailure(RpcError::kInvalidParams, "expected {\"name\":...,\"arguments\":{...}}");
  }
  try {
    if (name->as_string() == kRoute) {
      return route(arguments, cancelled);
    }
    const ToolShelf::Origin* origin = shelf_.origin(name->as_string());
    if (origin != nullptr && options_.forward) {
      return forward(*origin, arguments, cancelled);
    }
  } catch (const RpcFailure&) {
    throw;
  } catch (const Error& error) {
    return tool_failure(error.what());
  }
  throw RpcFailure(RpcError::kInvalidParams,
                   format("no tool is called {}; tools/list has them all", excerpt(*name)));
}

JsonValue McpRouter::forward(const ToolShelf::Origin& origin, const JsonValue& arguments,
                             const std::function<bool()>& cancelled) {
  const auto server =
      std::ranges::find(servers_, origin.server, [](const auto& client) { return client->name(); });
  if (server == servers_.end()) {
    throw Error(format("{}: the tool comes from no server and cannot be run", origin.tool));
  }
  try {
    return (*server)->call_tool(origin.tool, arguments, cancelled);
  } catch (const Error&) {
    if (cancelled && cancelled()) {
      throw Cancelled();
    }
    throw;
  }
}

JsonValue McpRouter::route(const JsonValue& arguments, const std::function<bool()>& cancelled) {
  constexpr std::array<std::string_view, 4> kFields = {"query", "tools", "required", "execute"};
  for (const std::string& name : unknown_fields(arguments, kFields)) {
    throw bad_request(name, "not an argument of route");
  }
  const bool execute = read_bool(arguments, "execute").value_or(false);
  if (execute && !options_.forward) {
    throw bad_request("execute", "this router does not run calls; start it with --forward");
  }
  CallRequest request{.query = read_string(arguments, "query").value_or(""),
                      .detail = StepDetail::kConfidence,
                      .cancelled = cancelled};
  if (request.query.find_first_not_of(" \t\r\n") == std::string::npos ||
      request.query.size() > options_.limits.query_bytes) {
    throw bad_request("query",
                      format("expected a text of 1 to {} bytes", options_.limits.query_bytes));
  }
  const bool own = arguments.find("tools") != nullptr;
  const auto served = models_.open(options_.model);
  const ToolShelf::Choice choice = shelf_.fitting(
      *served, request.query,
      own ? read_tools(arguments, options_.limits).json : write_compact(shelf_.tools()));
  request.tools_json = choice.tools_json;
  if (choice.tools_json == "[]") {
    throw bad_request("tools", choice.left_out > 0
                                   ? "none of the tools fits the model's prompt"
                                   : "there are none: give some, or start the router with "
                                     "--mcp-server, --config or --tools");
  }
  request.calls.min_calls = read_bool(arguments, "required").value_or(false) ? 1 : 0;
  const CallResult result = served->model.call(request);
  if (result.stop == StopReason::kCancelled) {
    throw Cancelled();
  }

  const std::vector<Call> calls = complete_calls(result.text);
  const auto problems = validate_calls(calls, parse_tools_text(request.tools_json));
  JsonValue list = JsonValue::array();
  JsonValue results = JsonValue::array();
  for (const Call& call : calls) {
    JsonValue json = call.to_json();
    const ToolShelf::Origin* origin = own ? nullptr : shelf_.origin(call.name);
    if (origin != nullptr && !origin->server.empty()) {
      json.set("server", text(origin->server));
    }
    list.items().push_back(std::move(json));
    if (execute && problems.empty() && origin != nullptr) {
      results.items().push_back(forward(*origin, call.arguments, cancelled));
    }
  }
  JsonValue structured = JsonValue::object({{"calls", std::move(list)}});
  structured.set("problems", problem_list(problems));
  if (result.confidence) {
    structured.set("confidence", to_json(*result.confidence, result, request.query));
  }
  structured.set("left_out", JsonValue::integer(choice.left_out));
  if (execute) {
    structured.set("results", std::move(results));
  }
  return tool_result(std::move(structured));
}

}  // namespace needle
