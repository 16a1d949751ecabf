#include "needle/calls/tool.h"

#include <algorithm>
#include <array>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

[[noreturn]] void fail(std::string_view path, std::string_view expected, const JsonValue& got) {
  throw DataError(format("{}: expected {}, got {}", path, expected, excerpt(got)));
}

std::string optional_string(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.find(key);
  return value != nullptr && value->is_string() ? value->as_string() : std::string();
}

// "string", or of ["string","null"] the first that says something.
std::string_view declared_type(const JsonValue& schema) {
  const JsonValue* type = schema.find("type");
  if (type == nullptr) {
    return "";
  }
  if (type->is_string()) {
    return json_schema_type(type->as_string());
  }
  if (type->is_array()) {
    for (const JsonValue& alternative : type->items()) {
      if (alternative.is_string() && alternative.as_string() != "null") {
        return json_schema_type(alternative.as_string());
      }
    }
  }
  return "";
}

ToolParameter parse_parameter(std::string_view name, const JsonValue& schema,
                              bool listed_as_required) {
  const JsonValue* required = schema.find("required");
  return {.name = std::string(name),
          .type = std::string(declared_type(schema)),
          .description = optional_string(schema, "description"),
          .required = listed_as_required ||
                      (required != nullptr && required->is_bool() && required->as_bool()),
          .schema = schema};
}

// The names in "required":[...]; a flat map of parameters may have that list too.
std::vector<std::string_view> required_names(const JsonValue& parameters, const std::string& path) {
  std::vector<std::string_view> names;
  const JsonValue* required = parameters.find("required");
  if (required == nullptr || !required->is_array()) {
    return names;
  }
  for (const JsonValue& name : required->items()) {
    if (!name.is_string()) {
      fail(path + ".required", "a list of parameter names", *required);
    }
    names.push_back(name.as_string());
  }
  return names;
}

std::vector<ToolParameter> parse_parameters(const JsonValue& parameters, const std::string& path) {
  if (parameters.is_null()) {
    return {};
  }
  if (!parameters.is_object()) {
    fail(path, "an object", parameters);
  }
  const bool is_schema = is_json_schema(parameters);
  const JsonValue* members = is_schema ? parameters.find("properties") : &parameters;
  if (members == nullptr || members->is_null()) {
    return {};
  }
  const std::string members_path = is_schema ? path + ".properties" : path;
  if (!members->is_object()) {
    fail(members_path, "an object", *members);
  }
  const auto required = required_names(parameters, path);
  std::vector<ToolParameter> result;
  for (const auto& [name, declared] : members->members()) {
    if (!is_schema && name == "required" && declared.is_array()) {
      continue;
    }
    const bool listed = std::find(required.begin(), required.end(), name) != required.end();
    if (declared.is_object()) {
      result.push_back(parse_parameter(name, declared, listed));
    } else if (declared.is_string()) {  // {"city":"string"}
      result.push_back(parse_parameter(name, JsonValue::object({{"type", declared}}), listed));
    } else if (is_schema && declared.is_bool()) {  // a schema may be just true: anything goes
      result.push_back(parse_parameter(name, JsonValue::object(), listed));
    } else {
      fail(members_path + "." + name, "an object that describes the parameter", declared);
    }
  }
  return result;
}

JsonValue unwrap_tool(JsonValue tool) {
  if (JsonValue* function = tool.find("function"); function != nullptr && function->is_object()) {
    JsonValue inner = std::move(*function);
    tool = std::move(inner);
  }
  if (tool.is_object() && tool.find("parameters") == nullptr) {
    for (auto& [key, value] : tool.members()) {
      if ((key == "inputSchema" || key == "input_schema") && value.is_object()) {
        key = "parameters";
        break;
      }
    }
  }
  return tool;
}

Tool parse_tool(const JsonValue& declared, const std::string& path) {
  if (!declared.is_object()) {
    fail(path, "an object with a name", declared);
  }
  const JsonValue* name = declared.find("name");
  if (name == nullptr) {
    fail(path, "an object with a name", declared);
  }
  if (!name->is_string() || name->as_string().empty()) {
    fail(path + ".name", "a name", *name);
  }
  const JsonValue* parameters = declared.find("parameters");
  return {.name = name->as_string(),
          .description = optional_string(declared, "description"),
          .parameters = parameters == nullptr ? std::vector<ToolParameter>()
                                              : parse_parameters(*parameters, path + ".parameters"),
          .declared = declared};
}

}  // namespace

const ToolParameter* Tool::find_parameter(std::string_view parameter_name) const {
  const auto found = std::find_if(
      parameters.begin(), parameters.end(),
      [&](const ToolParameter& parameter) { return parameter.name == parameter_name; });
  return found == parameters.end() ? nullptr : &*found;
}

std::vector<Tool> parse_tools(const JsonValue& tools) {
  if (tools.is_string()) {
    return parse_tools_text(tools.as_string());
  }
  const JsonValue unwrapped = unwrap_tools(tools);
  if (!unwrapped.is_array()) {
    fail("tools", "an array of tools", tools);
  }
  std::vector<Tool> result;
  for (const JsonValue& tool : unwrapped.items()) {
    result.push_back(parse_tool(tool, format("tools[{}]", result.size())));
  }
  return result;
}

std::vector<Tool> parse_tools_text(std::string_view text) {
  JsonParseResult parsed = parse_json_value(text);
  if (!parsed.value) {
    throw DataError(format("tools: not JSON: {}", parsed.error));
  }
  if (parsed.value->is_string()) {  // quoted twice: not a form that anyone writes on purpose
    fail("tools", "an array of tools", *parsed.value);
  }
  return parse_tools(*parsed.value);
}

JsonValue unwrap_tools(JsonValue tools) {
  if (JsonValue* list = tools.find("tools"); list != nullptr && list->is_array()) {
    JsonValue inner = std::move(*list);
    tools = std::move(inner);
  }
  if (tools.is_array()) {
    for (JsonValue& tool : tools.items()) {
      tool = unwrap_tool(std::move(tool));
    }
  }
  return tools;
}

bool is_json_schema(const JsonValue& parameters) {
  if (const JsonValue* type = parameters.find("type")) {
    return !type->is_object();  // a flat parameter may be called "type"
  }
  const JsonValue* properties = parameters.find("properties");
  // A flat parameter may be called "properties": then its members are "type", "description", not
  // all objects.
  return properties != nullptr && properties->is_object() &&
         std::all_of(properties->members().begin(), properties->members().end(),
                     [](const auto& member) { return member.second.is_object(); });
}

std::string_view json_schema_type(std::string_view declared) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 30> kTypes{{
      {"string", "string"},     {"str", "string"},     {"text", "string"},
      {"char", "string"},       {"number", "number"},  {"float", "number"},
      {"double", "number"},     {"decimal", "number"}, {"integer", "integer"},
      {"int", "integer"},       {"long", "integer"},   {"short", "integer"},
      {"byte", "integer"},      {"bigint", "integer"}, {"boolean", "boolean"},
      {"bool", "boolean"},      {"array", "array"},    {"list", "array"},
      {"tuple", "array"},       {"set", "array"},      {"sequence", "array"},
      {"arraylist", "array"},   {"object", "object"},  {"dict", "object"},
      {"dictionary", "object"}, {"map", "object"},     {"mapping", "object"},
      {"hashmap", "object"},    {"struct", "object"},  {"null", "null"},
  }};
  // "List[str]" and "Map<String, Integer>": what stands before the bracket counts.
  std::string name;
  for (const char c : declared.substr(0, declared.find_first_of("[<("))) {
    name.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  for (const auto& [known, type] : kTypes) {
    if (known == name) {
      return type;
    }
  }
  return "";
}

}  // namespace needle
