// Tools as users declare them, in either style, and their typed view.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"

namespace needle {

struct ToolParameter {
  std::string name;
  std::string type;  // JSON Schema type name: string, number, integer, boolean, array, object; ""
                     // if unstated
  std::string description;
  bool required = false;
  JsonValue schema;  // the parameter's whole object as declared
};

// `declared` is what prompts are made from: the object as the user wrote it, unwrapped (see
// unwrap_tools).
struct Tool {
  std::string name;
  std::string description;
  std::vector<ToolParameter> parameters;
  JsonValue declared;

  const ToolParameter* find_parameter(std::string_view parameter_name) const;
};

// `tools`: a JSON array, a JSON string holding one, an MCP {"tools":[...]} object. Each tool flat
// ({"parameters":{p:{"type",...,"required":bool}}}) or JSON Schema
// ({"parameters":{"type":"object","properties":{...}, "required":[...]}}). Throws DataError naming
// the tool's index and the JSON path.
std::vector<Tool> parse_tools(const JsonValue& tools);
std::vector<Tool> parse_tools_text(std::string_view text);

// The tools as a plain array, each as the model is shown it: {"tools":[...]} becomes its array, an
// OpenAI
// {"type":"function","function":{...}} its function, an MCP "inputSchema" (or "input_schema")
// "parameters". Whatever is not in one of these forms stays as it is.
JsonValue unwrap_tools(JsonValue tools);

// A tool's own list of ways to ask for it, from which rows are made (needle/synth): a note to us,
// not shown to a model.
inline constexpr std::string_view kToolTemplatesKey = "templates";

// True if `parameters` is a JSON Schema of an object rather than a flat map of parameters.
bool is_json_schema(const JsonValue& parameters);

// JSON Schema's name of a declared type: "dict" is object, "float" number, "tuple" array,
// "List[str]" array, "String" string. "" if it says nothing that can be checked ("any", or an
// unknown name).
std::string_view json_schema_type(std::string_view declared);

}  // namespace needle
