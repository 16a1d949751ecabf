#include "needle/server/mcp_client.h"

#include <algorithm>
#include <array>
#include <optional>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/version.h"
#include "needle/server/json_rpc.h"

namespace needle {
namespace {

constexpr std::array<std::string_view, 4> kVersions = {"2024-11-05", "2025-03-26", kMcpVersion,
                                                       "2025-11-25"};
constexpr std::size_t kMostTools = 10'000;

std::string text_member(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.find(key);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

std::string program_name(const std::string& program) {
  return std::filesystem::path(program).stem().string();
}

std::vector<std::string> string_list(const JsonValue& value, const std::string& where) {
  std::vector<std::string> texts;
  if (!value.is_array()) {
    throw ConfigError(format("{}: expected a list of strings, got {}", where, excerpt(value)));
  }
  for (const JsonValue& item : value.items()) {
    if (!item.is_string()) {
      throw ConfigError(format("{}: expected a string, got {}", where, excerpt(item)));
    }
    texts.push_back(item.as_string());
  }
  return texts;
}

McpServerConfig server_config(const std::string& name, const JsonValue& value,
                              const std::string& where) {
  McpServerConfig config{.name = name};
  const std::string program = text_member(value, "command");
  if (program.empty()) {
    throw ConfigError(format(
        "{}.command: expected the program to start (servers are reached over stdio)", where));
  }
  config.command.push_back(program);
  if (const JsonValue* arguments = value.find("args")) {
    for (std::string& argument : string_list(*arguments, where + ".args")) {
      config.command.push_back(std::move(argument));
    }
  }
  if (const JsonValue* variables = value.find("env")) {
    if (!variables->is_object()) {
      throw ConfigError(format("{}.env: expected an object of strings", where));
    }
    for (const auto& [key, text] : variables->members()) {
      if (!text.is_string()) {
        throw ConfigError(
            format("{}.env.{}: expected a string, got {}", where, key, excerpt(text)));
      }
      config.environment.emplace_back(key, text.as_string());
    }
  }
  return config;
}

}  // namespace

bool speaks_mcp_version(std::string_view version) {
  return std::ranges::find(kVersions, version) != kVersions.end();
}

std::vector<McpServerConfig> read_mcp_config(const std::filesystem::path& path) {
  const JsonParseResult parsed = parse_json_value(read_file(path));
  if (!parsed.value) {
    throw ConfigError(format("{}: not JSON: {}", path, parsed.error));
  }
  const JsonValue* servers = parsed.value->find("mcpServers");
  if (servers == nullptr || !servers->is_object()) {
    throw ConfigError(format(
        R"({}: expected {{"mcpServers": {{"name": {{"command": "...", "args": [...]}}}}}})", path));
  }
  std::vector<McpServerConfig> configs;
  for (const auto& [name, value] : servers->members()) {
    configs.push_back(server_config(name, value, format("{}: mcpServers.{}", path, name)));
  }
  return configs;
}

McpServerConfig mcp_command(std::string_view line) {
  McpServerConfig config;
  std::optional<std::string> word;
  char quote = '\0';
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '\\' && quote != '\'' && i + 1 < line.size()) {
      word = word.value_or("") + line[++i];
    } else if (quote != '\0' ? c == quote : (c == '\'' || c == '"')) {
      quote = quote != '\0' ? '\0' : c;
      word = word.value_or("");
    } else if (quote == '\0' && (c == ' ' || c == '\t')) {
      if (word) {
        config.command.push_back(*std::exchange(word, {}));
      }
    } else {
      word = word.value_or("") + c;
    }
  }
  if (word) {
    config.command.push_back(*word);
  }
  if (quote != '\0' || config.command.empty() || config.command[0].empty()) {
    throw ConfigError(format("--mcp-server {}: expected a program and its arguments{}",
                             excerpt(JsonValue::string(std::string(line))),
                             quote != '\0' ? "; a quote is not closed" : ""));
  }
  config.name = program_name(config.command[0]);
  return config;
}

McpClient::McpClient(McpServerConfig config, std::chrono::milliseconds timeout)
    : config_(std::move(config)), timeout_(timeout) {
  try {
    process_ = std::make_unique<ChildProcess>(config_.command, config_.environment);
  } catch (const FileError& error) {
    fail(error.what());
  }
  greet();
}

void McpClient::fail(const std::string& message) const {
  throw Error(format("MCP server {}: {}", config_.name, message));
}

void McpClient::greet() {
  JsonValue params = JsonValue::object();
  params.set("protocolVersion", JsonValue::string(std::string(kMcpVersion)));
  params.set("capabilities", JsonValue::object());
  params.set("clientInfo",
             JsonValue::object({{"name", JsonValue::string("needle-serve")},
                                {"version", JsonValue::string(std::string(version()))}}));
  const JsonValue result = request("initialize", std::move(params));
  const std::string version = text_member(result, "protocolVersion");
  if (!speaks_mcp_version(version)) {
    fail(format("it speaks version {} of the protocol, which is not known here",
                excerpt(JsonValue::string(version))));
  }
  const std::lock_guard lock(mutex_);
  process_->write_line(rpc_notification("notifications/initialized", JsonValue::object()),
                       ChildProcess::Clock::now() + timeout_);
}

JsonValue::Array McpClient::list_tools() {
  JsonValue::Array tools;
  std::string cursor;
  do {
    JsonValue params = JsonValue::object();
    if (!cursor.empty()) {
      params.set("cursor", JsonValue::string(cursor));
    }
    const JsonValue page = request("tools/list", std::move(params));
    const JsonValue* list = page.find("tools");
    if (list == nullptr || !list->is_array()) {
      fail("tools/list: expected a list called tools");
    }
    const std::string next = text_member(page, "nextCursor");
    if (tools.size() + list->items().size() > kMostTools || (next == cursor && !next.empty())) {
      fail(format("tools/list: over {} tools, or pages without end", kMostTools));
    }
    tools.insert(tools.end(), list->items().begin(), list->items().end());
    cursor = next;
  } while (!cursor.empty());
  return tools;
}

JsonValue McpClient::call_tool(std::string_view tool, const JsonValue& arguments,
                               const std::function<bool()>& cancelled) {
  return request(
      "tools/call",
      JsonValue::object({{"name", JsonValue::string(std::string(tool))}, {"arguments", arguments}}),
      cancelled);
}

JsonValue McpClient::request(std::string_view method, JsonValue params,
                             const std::function<bool()>& cancelled) {
  const std::lock_guard lock(mutex_);
  const std::int64_t id = ++last_id_;
  JsonValue reply;
  try {
    process_->write_line(rpc_request(id, method, std::move(params)),
                         ChildProcess::Clock::now() + timeout_);
    reply = wait_for_reply(id, cancelled);
  } catch (const Error& error) {
    fail(format("{}: {}", method, error.what()));
  }
  if (const JsonValue* error = reply.find("error")) {
    fail(format("{}: {}", method, text_member(*error, "message")));
  }
  const JsonValue* result = reply.find("result");
  return result == nullptr ? JsonValue::object() : *result;
}

JsonValue McpClient::wait_for_reply(std::int64_t id, const std::function<bool()>& cancelled) {
  const auto give_up = [&](const std::string& why) {
    process_->write_line(rpc_notification("notifications/cancelled",
                                          JsonValue::object({{"requestId", JsonValue::integer(id)},
                                                             {"reason", JsonValue::string(why)}})),
                         ChildProcess::Clock::now() + timeout_);
    throw Error(why);
  };
  const auto deadline = ChildProcess::Clock::now() + timeout_;
  for (;;) {
    const auto soon = ChildProcess::Clock::now() + std::chrono::milliseconds(50);
    const auto line = process_->read_line(std::min(deadline, soon));
    if (!line) {
      if (cancelled && cancelled()) {
        give_up("cancelled");
      }
      if (ChildProcess::Clock::now() >= deadline) {
        give_up(format("no answer within {} ms", timeout_.count()));
      }
      continue;
    }
    const JsonParseResult parsed = parse_json_value(*line);
    if (!parsed.value || !parsed.value->is_object()) {
      continue;  // some programs greet on their standard output
    }
    const JsonValue* reply_id = parsed.value->find("id");
    if (parsed.value->find("method") != nullptr) {
      if (reply_id != nullptr) {
        answer(*parsed.value);
      }
    } else if (reply_id != nullptr && *reply_id == JsonValue::integer(id)) {
      return *parsed.value;  // others belong to requests that were given up
    }
  }
}

void McpClient::answer(const JsonValue& message) {
  const JsonValue& id = *message.find("id");
  const std::string line =
      text_member(message, "method") == "ping"
          ? rpc_result(id, JsonValue::object())
          : rpc_error(id, RpcError::kMethodNotFound, "this client offers nothing of its own");
  process_->write_line(line, ChildProcess::Clock::now() + timeout_);
}

}  // namespace needle
