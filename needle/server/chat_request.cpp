#include "needle/server/chat_request.h"

#include <algorithm>
#include <array>
#include <utility>

#include "needle/server/api_error.h"
#include "needle/server/body.h"

namespace needle {
namespace {

constexpr std::array<std::string_view, 18> kKnownFields = {
    "model",      "messages",     "tools",  "tool_choice",    "parallel_tool_calls",
    "n",          "stream",       "stop",   "stream_options", "response_format",
    "max_tokens", "seed",         "needle", "temperature",    "max_completion_tokens",
    "logprobs",   "top_logprobs", "top_p"};

// Text of a message's content: a string, or parts of which each is text.
std::string content_text(const JsonValue& content, const std::string& path) {
  if (content.is_string()) {
    return content.as_string();
  }
  if (!content.is_array()) {
    throw bad_request(path, "expected a string or a list of text parts");
  }
  std::string text;
  for (std::size_t i = 0; i < content.items().size(); ++i) {
    const JsonValue& part = content.items()[i];
    const JsonValue* type = part.find("type");
    const JsonValue* piece = part.find("text");
    if (type == nullptr || !type->is_string() || type->as_string() != "text" || piece == nullptr ||
        !piece->is_string()) {
      throw bad_request(format("{}[{}]", path, i),
                        "expected {\"type\":\"text\",\"text\":...}: this model reads text only");
    }
    text += piece->as_string();
  }
  return text;
}

// The model answers single turns: it sees the last message, which is the user's.
void read_messages(const JsonValue& body, const ServerLimits& limits, ChatRequest& request) {
  const JsonValue* messages = body.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->items().empty()) {
    throw bad_request("messages", "expected a list of messages that ends with the user's");
  }
  const std::size_t last = messages->items().size() - 1;
  for (std::size_t i = 0; i <= last; ++i) {
    const std::string path = format("messages[{}]", i);
    const JsonValue& message = messages->items()[i];
    const JsonValue* role = message.find("role");
    if (role == nullptr || !role->is_string()) {
      throw bad_request(path + ".role", "expected system, developer, user, assistant or tool");
    }
    if (i < last) {
      request.ignored.push_back(format("{} ({})", path, excerpt(*role, 20)));
      continue;
    }
    if (role->as_string() != "user") {
      throw bad_request(path + ".role",
                        format("expected the last message to be the user's, got {}: this model "
                               "answers one request at a time and reads no results of tools",
                               excerpt(*role)));
    }
    const JsonValue* content = message.find("content");
    request.call.query =
        content_text(content == nullptr ? JsonValue() : *content, path + ".content");
    if (request.call.query.find_first_not_of(" \t\r\n") == std::string::npos) {
      throw bad_request(path + ".content", "the text is empty");
    }
    if (request.call.query.size() > limits.query_bytes) {
      throw bad_request(path + ".content", format("{} bytes: at most {} are allowed",
                                                  request.call.query.size(), limits.query_bytes));
    }
  }
}

std::string named_tool(const JsonValue& choice, const std::string& path) {
  const JsonValue* function = choice.find("function");
  const JsonValue* name = function == nullptr ? nullptr : function->find("name");
  if (name == nullptr || !name->is_string()) {
    throw bad_request(path, "expected {\"type\":\"function\",\"function\":{\"name\":...}}");
  }
  return name->as_string();
}

// Leaves those tools that are named.
void keep_tools(const std::vector<std::string>& names, ChatRequest& request) {
  const std::vector<Tool>& tools = request.offered->tools;
  auto kept = std::make_shared<ReadTools>();
  JsonValue::Array declared;
  for (const std::string& name : names) {
    const auto found = std::ranges::find(tools, name, &Tool::name);
    if (found == tools.end()) {
      throw bad_request("tool_choice", format("no tool is called {}", name));
    }
    declared.push_back(found->declared);
    kept->tools.push_back(*found);
  }
  kept->json = write_compact(JsonValue::array(std::move(declared)));
  request.call.tools_json = kept->json;
  request.offered = std::move(kept);
}

void apply_mode(const std::string& mode, ChatRequest& request) {
  if (mode == "none") {
    request.answer_nothing = true;
  } else if (mode == "required") {
    request.call.calls.min_calls = 1;
  } else if (mode != "auto") {
    throw bad_request("tool_choice",
                      format("expected none, auto, required, a function or allowed_tools, got {}",
                             excerpt(JsonValue::string(mode))));
  }
}

void read_tool_choice(const JsonValue& body, ChatRequest& request) {
  const JsonValue* choice = body.find("tool_choice");
  if (choice == nullptr || choice->is_null()) {
    return;
  }
  if (choice->is_string()) {
    apply_mode(choice->as_string(), request);
    return;
  }
  const std::string type = read_string(*choice, "type").value_or("");
  if (type == "function") {
    keep_tools({named_tool(*choice, "tool_choice")}, request);
    request.call.calls.min_calls = 1;
    return;
  }
  const JsonValue* allowed = choice->find("allowed_tools");
  const JsonValue* tools = allowed == nullptr ? nullptr : allowed->find("tools");
  if (type != "allowed_tools" || tools == nullptr || !tools->is_array()) {
    throw bad_request("tool_choice",
                      format("expected type function or allowed_tools, got {}", excerpt(*choice)));
  }
  std::vector<std::string> names;
  for (const JsonValue& tool : tools->items()) {
    names.push_back(named_tool(tool, "tool_choice.allowed_tools.tools"));
  }
  keep_tools(names, request);
  apply_mode(read_string(*allowed, "mode").value_or("auto"), request);
}

void read_stop(const JsonValue& body, ChatRequest& request) {
  const JsonValue* stop = body.find("stop");
  if (stop == nullptr || stop->is_null()) {
    return;
  }
  const JsonValue::Array list = stop->is_array() ? stop->items() : JsonValue::Array{*stop};
  for (const JsonValue& item : list) {
    if (!item.is_string() || item.as_string().empty() || list.size() > 4) {
      throw bad_request("stop", "expected a text or a list of one to four texts");
    }
    request.stop.push_back(item.as_string());
  }
}

// The extension of this server:
// {"confidence":bool,"trace":bool,"constrain":"grammar"|"names"|"none"}.
void read_extension(const JsonValue& body, ChatRequest& request) {
  const JsonValue* extension = body.find("needle");
  if (extension == nullptr || extension->is_null()) {
    return;
  }
  if (!extension->is_object()) {
    throw bad_request("needle", "expected an object");
  }
  constexpr std::array<std::string_view, 3> kFields = {"confidence", "trace", "constrain"};
  for (const std::string& name : unknown_fields(*extension, kFields)) {
    request.ignored.push_back("needle." + name);
  }
  request.trace = read_bool(*extension, "trace").value_or(false);
  if (request.trace || read_bool(*extension, "confidence").value_or(false)) {
    request.call.detail = request.trace ? StepDetail::kTrace : StepDetail::kConfidence;
  }
  if (const auto name = read_string(*extension, "constrain")) {
    const auto constrain = kConstrainNames.parse(*name);
    if (!constrain) {
      throw bad_request("needle.constrain", format("expected one of {}", kConstrainNames.list()));
    }
    request.call.constrain = *constrain;
  }
}

void refuse(const JsonValue& body, std::string_view key, std::string_view instead) {
  const JsonValue* value = body.find(key);
  if (value != nullptr && !value->is_null() && !(value->is_bool() && !value->as_bool())) {
    throw ApiError(400, format("{}: {}", key, instead),
                   {.code = "unsupported_parameter", .param = std::string(key)});
  }
}

// An answer of the schema's form instead of calls.
void read_response_format(const JsonValue& body, ChatRequest& request) {
  const JsonValue* wanted = body.find("response_format");
  if (wanted == nullptr || wanted->is_null()) {
    return;
  }
  const std::string type = read_string(*wanted, "type").value_or("");
  if (type == "text") {
    return;
  }
  const JsonValue* format_object = wanted->find("json_schema");
  const JsonValue* schema = format_object == nullptr ? nullptr : format_object->find("schema");
  if (type != "json_schema" || schema == nullptr || !schema->is_object()) {
    throw bad_request("response_format",
                      "expected {\"type\":\"text\"} or "
                      "{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{...}}}");
  }
  if (request.call.tools_json != "[]" && !request.answer_nothing) {
    throw bad_request("response_format",
                      "an answer is either calls or a value: leave tools out, "
                      "or say tool_choice none");
  }
  request.answer_nothing = false;
  request.call.tools_json = "[]";
  request.call.response_schema = write_compact(*schema);
  request.call.strict = read_bool(*format_object, "strict").value_or(false);
}

// What only the grammar can promise.
void check_promises(const ChatRequest& request) {
  const CallLimits& calls = request.call.calls;
  if (calls.min_calls > 0 && request.call.tools_json == "[]") {
    throw bad_request("tool_choice", "there is no tool to call");
  }
  if (request.call.constrain != Constrain::kGrammar &&
      (calls.min_calls > 0 || calls.max_calls >= 0 || request.call.strict ||
       !request.call.response_schema.empty())) {
    throw bad_request("needle.constrain",
                      "only \"grammar\" can keep tool_choice, parallel_tool_calls, strict and "
                      "response_format");
  }
}

void read_numbers(const JsonValue& body, const ServerLimits& limits, ChatRequest& request) {
  request.choices = read_integer(body, "n", 1, limits.choices).value_or(1);
  if (request.choices > 1) {
    request.call.n_best = request.choices;
  }
  constexpr std::int64_t kMost = 1'000'000;
  auto tokens = read_integer(body, "max_completion_tokens", 1, kMost);
  if (!tokens) {
    tokens = read_integer(body, "max_tokens", 1, kMost);
  }
  if (tokens) {
    request.call.max_gen_len = *tokens + 1;  // one token less comes out
  }
  for (const std::string_view key : {"temperature", "top_p"}) {
    const JsonValue* value = body.find(key);
    if (value != nullptr && !value->is_null()) {
      if (!value->is_number()) {
        throw bad_request(std::string(key), "expected a number");
      }
      request.ignored.emplace_back(key);  // decoding is greedy
    }
  }
}

}  // namespace

ChatRequest parse_chat_request(const JsonValue& body, const ServerLimits& limits,
                               ToolReader& tools) {
  ChatRequest request;
  request.model = read_string(body, "model").value_or("");
  read_messages(body, limits, request);
  request.offered = tools.read(body);
  request.call.tools_json = request.offered->json;
  request.call.strict = request.offered->strict;
  read_tool_choice(body, request);
  read_response_format(body, request);
  if (!read_bool(body, "parallel_tool_calls").value_or(true)) {
    request.call.calls.max_calls = 1;
  }
  refuse(body, "logprobs", "ask for {\"needle\":{\"trace\":true}} instead");
  refuse(body, "top_logprobs", "ask for {\"needle\":{\"trace\":true}} instead");
  refuse(body, "functions", "was replaced by tools");
  refuse(body, "function_call", "was replaced by tool_choice");
  refuse(body, "logit_bias", "is not supported");
  read_numbers(body, limits, request);
  read_stop(body, request);
  read_integer(body, "seed", INT64_MIN, INT64_MAX);
  request.stream = read_bool(body, "stream").value_or(false);
  if (const JsonValue* options = body.find("stream_options"); options != nullptr) {
    request.include_usage = read_bool(*options, "include_usage").value_or(false);
  }
  read_extension(body, request);
  check_promises(request);
  if (request.stream && request.choices > 1) {
    throw ApiError(400, "n: only one choice can be streamed",
                   {.code = "unsupported_value", .param = "n"});
  }
  for (std::string& name : unknown_fields(body, kKnownFields)) {
    request.ignored.push_back(std::move(name));
  }
  return request;
}

}  // namespace needle
