// Function calls, their canonical form, and a call checked against its tool.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/calls/tool.h"

namespace needle {

struct Call {
  std::string name;
  JsonValue arguments = JsonValue::object();

  JsonValue to_json() const;  // {"name":...,"arguments":{...}}
};

// `answers`: a JSON array of {"name","arguments"} or a JSON string holding one. Throws DataError
// with the path.
std::vector<Call> parse_calls(const JsonValue& answers);
std::vector<Call> parse_calls_text(std::string_view text);

// Equal calls have equal text: canonical JSON of name and arguments.
std::string canonical(const Call& call);

struct CallProblem {
  std::string path;     // "[0].arguments.city"
  std::string message;  // "expected a string, got 5"
};
// Known tool, known parameters, required ones present, types and enum values as declared. Empty:
// the call is valid.
std::vector<CallProblem> validate_calls(std::span<const Call> calls, std::span<const Tool> tools);

}  // namespace needle
