#include "needle/calls/call.h"

#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

Call parse_call(const JsonValue& declared, const std::string& path) {
  const JsonValue* function = declared.find("function");
  const JsonValue& call = function != nullptr && function->is_object() ? *function : declared;
  const JsonValue* name = call.find("name");
  if (name == nullptr || !name->is_string()) {
    throw DataError(format("{}: expected an object with a name and arguments, got {}", path,
                           excerpt(declared)));
  }
  Call result{.name = name->as_string()};
  if (const JsonValue* arguments = call.find("arguments")) {
    result.arguments = *arguments;
    if (arguments->is_string()) {  // OpenAI sends the arguments as text
      if (auto parsed = parse_json_value(arguments->as_string()).value) {
        result.arguments = std::move(*parsed);
      }
    }
  }
  if (!result.arguments.is_object()) {
    throw DataError(
        format("{}.arguments: expected an object, got {}", path, excerpt(result.arguments)));
  }
  return result;
}

}  // namespace

JsonValue Call::to_json() const {
  return JsonValue::object({{"name", JsonValue::string(name)}, {"arguments", arguments}});
}

std::vector<Call> parse_calls(const JsonValue& answers) {
  if (answers.is_string()) {
    return parse_calls_text(answers.as_string());
  }
  if (answers.is_object()) {
    return {parse_call(answers, "[0]")};
  }
  if (!answers.is_array()) {
    throw DataError(format("answers: expected an array of calls, got {}", excerpt(answers)));
  }
  std::vector<Call> calls;
  for (const JsonValue& call : answers.items()) {
    calls.push_back(parse_call(call, format("[{}]", calls.size())));
  }
  return calls;
}

std::vector<Call> parse_calls_text(std::string_view text) {
  const JsonParseResult parsed = parse_json_value(text);
  if (!parsed.value) {
    throw DataError(format("answers: not JSON: {}", parsed.error));
  }
  if (parsed.value->is_string()) {
    throw DataError(format("answers: expected an array of calls, got {}", excerpt(*parsed.value)));
  }
  return parse_calls(*parsed.value);
}

std::string canonical(const Call& call) { return write_canonical(call.to_json()); }

}  // namespace needle
