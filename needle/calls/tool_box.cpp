#include "needle/calls/tool_box.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "needle/core/error.h"

namespace needle {
namespace internal {
namespace {

void set_number(JsonValue& schema, std::string_view key, std::optional<double> value) {
  if (value) {
    const bool whole = std::trunc(*value) == *value && std::abs(*value) < 1e15;
    schema.set(key, whole ? JsonValue::integer(static_cast<std::int64_t>(*value))
                          : JsonValue::number(*value));
  }
}

void set_count(JsonValue& schema, std::string_view key, std::optional<std::int64_t> value) {
  if (value) {
    schema.set(key, JsonValue::integer(*value));
  }
}

void set_text(JsonValue& schema, std::string_view key, std::string_view value) {
  if (!value.empty()) {
    schema.set(key, JsonValue::string(std::string(value)));
  }
}

}  // namespace

JsonValue leaf_schema(std::string_view type, const FieldLimits& limits) {
  JsonValue schema = JsonValue::object({{"type", JsonValue::string(std::string(type))}});
  if (type == "integer" || type == "number") {
    set_number(schema, "minimum", limits.minimum);
    set_number(schema, "maximum", limits.maximum);
  } else if (type == "string") {
    set_count(schema, "minLength", limits.min_length);
    set_count(schema, "maxLength", limits.max_length);
    set_text(schema, "pattern", limits.pattern);
    set_text(schema, "format", limits.format);
  }
  return schema;
}

JsonValue array_schema(JsonValue items, const FieldLimits& limits) {
  JsonValue schema =
      JsonValue::object({{"type", JsonValue::string("array")}, {"items", std::move(items)}});
  set_count(schema, "minItems", limits.min_items);
  set_count(schema, "maxItems", limits.max_items);
  return schema;
}

JsonValue enum_schema(std::vector<std::string_view> names) {
  JsonValue::Array values;
  for (const std::string_view name : names) {
    values.push_back(JsonValue::string(std::string(name)));
  }
  return JsonValue::object(
      {{"type", JsonValue::string("string")}, {"enum", JsonValue::array(std::move(values))}});
}

JsonValue empty_object_schema() {
  return JsonValue::object({{"type", JsonValue::string("object")},
                            {"properties", JsonValue::object()},
                            {"required", JsonValue::array()}});
}

void add_property(JsonValue& schema, std::string_view name, std::string_view description,
                  bool required, JsonValue property) {
  set_text(property, "description", description);
  schema.find("properties")->set(name, std::move(property));
  if (required) {
    schema.find("required")->items().push_back(JsonValue::string(std::string(name)));
  }
}

void throw_argument(std::string_view path, std::string_view expected, const JsonValue& got) {
  throw DataError(format("{}: expected {}, got {}", path, expected, excerpt(got)));
}

bool read_bool_argument(const JsonValue& value, std::string_view path) {
  if (!value.is_bool()) {
    throw_argument(path, "true or false", value);
  }
  return value.as_bool();
}

std::int64_t read_integer_argument(const JsonValue& value, std::string_view path,
                                   std::int64_t least, std::int64_t most) {
  std::optional<std::int64_t> number;
  if (value.is_integer()) {
    number = value.as_int64();
  } else if (value.is_number() && std::trunc(value.as_double()) == value.as_double() &&
             std::abs(value.as_double()) < 9e15) {  // JSON Schema: 5.0 is an integer
    number = static_cast<std::int64_t>(value.as_double());
  }
  if (!number || *number < least || *number > most) {
    throw_argument(path, format("an integer from {} to {}", least, most), value);
  }
  return *number;
}

double read_number_argument(const JsonValue& value, std::string_view path) {
  if (!value.is_number() || !std::isfinite(value.as_double())) {
    throw_argument(path, "a finite number", value);
  }
  return value.as_double();
}

const std::string& read_string_argument(const JsonValue& value, std::string_view path) {
  if (!value.is_string()) {
    throw_argument(path, "a string", value);
  }
  return value.as_string();
}

const JsonValue::Array& read_array_argument(const JsonValue& value, std::string_view path) {
  if (!value.is_array()) {
    throw_argument(path, "an array", value);
  }
  return value.items();
}

void check_object_argument(const JsonValue& value, std::string_view path) {
  if (!value.is_object()) {
    throw_argument(path, "an object", value);
  }
}

std::string child_path(std::string_view path, std::string_view name) {
  return format("{}.{}", path, name);
}
std::string item_path(std::string_view path, std::size_t index) {
  return format("{}[{}]", path, index);
}

}  // namespace internal

namespace {

// Whether a schema holds an object's properties at any depth.
bool has_struct(const JsonValue& schema) {
  const JsonValue* items = schema.find("items");
  return schema.find("properties") != nullptr || (items != nullptr && has_struct(*items));
}

// {"type": "object", "properties": {p: {...}}, "required": [p]} as {p: {..., "required": true}}.
// A struct's own "required" is a list and leaves no room for that: then it stays as it is.
JsonValue flat_parameters(const JsonValue& schema) {
  const JsonValue::Object& properties = schema.find("properties")->members();
  const bool nested = std::ranges::any_of(
      properties, [](const auto& property) { return has_struct(property.second); });
  if (nested || properties.empty()) {
    return nested ? schema : JsonValue::object();
  }
  const JsonValue::Array& required = schema.find("required")->items();
  JsonValue flat = JsonValue::object();
  for (const auto& [name, property] : properties) {
    JsonValue parameter = property;
    const bool listed = std::ranges::any_of(
        required, [&name = name](const JsonValue& item) { return item.as_string() == name; });
    parameter.set("required", JsonValue::boolean(listed));
    flat.set(name, std::move(parameter));
  }
  return flat;
}

}  // namespace

void ToolBox::add_bound(std::string name, std::string description, JsonValue schema,
                        Binder binder) {
  if (name.empty()) {
    throw ConfigError("a tool needs a name");
  }
  if (std::ranges::find(tools_, name, &Tool::name) != tools_.end()) {
    throw ConfigError(format("the tool '{}' was added twice", name));
  }
  JsonValue declared = JsonValue::object({{"name", JsonValue::string(std::move(name))},
                                          {"description", JsonValue::string(description)},
                                          {"parameters", flat_parameters(schema)}});
  tools_.push_back(std::move(parse_tools(JsonValue::array({std::move(declared)})).front()));
  binders_.push_back(std::move(binder));
}

std::string ToolBox::json() const {
  JsonValue::Array declared;
  for (const Tool& tool : tools_) {
    declared.push_back(tool.declared);
  }
  return write_compact(JsonValue::array(std::move(declared)), JsonEscapes::kUtf8);
}

ToolBox::Bound ToolBox::bind(const Call& call, const std::string& path) const {
  const auto tool = std::ranges::find(tools_, call.name, &Tool::name);
  return binders_[static_cast<std::size_t>(tool - tools_.begin())](call.arguments, path);
}

std::vector<CallProblem> ToolBox::check(const std::vector<Call>& calls) const {
  std::vector<CallProblem> problems = validate_calls(calls, tools_);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const std::string own = format("[{}].", i);
    if (std::ranges::any_of(problems, [&](const auto& p) { return p.path.starts_with(own); })) {
      continue;
    }
    try {
      bind(calls[i], own + "arguments");
    } catch (const DataError& error) {
      problems.push_back({.path = own + "arguments", .message = error.what()});
    }
  }
  return problems;
}

std::vector<ToolOutcome> ToolBox::dispatch(std::string_view answer,
                                           const DispatchOptions& options) const {
  return dispatch(parse_calls_text(answer), options);
}

std::vector<ToolOutcome> ToolBox::dispatch(const std::vector<Call>& calls,
                                           const DispatchOptions& options) const {
  const std::vector<CallProblem> problems = check(calls);
  std::vector<ToolOutcome> outcomes;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    ToolOutcome& outcome = outcomes.emplace_back(ToolOutcome{.call = calls[i]});
    const std::string own = format("[{}].", i);
    std::ranges::copy_if(problems, std::back_inserter(outcome.problems),
                         [&](const auto& p) { return p.path.starts_with(own); });
    if (!outcome.problems.empty() || (options.all_or_none && !problems.empty())) {
      continue;
    }
    const Bound run = bind(calls[i], own + "arguments");
    outcome.ran = true;
    try {
      outcome.result = run();
    } catch (const std::exception& error) {
      outcome.error = error.what();
    } catch (...) {
      outcome.error = "an exception of an unknown type";
    }
  }
  return outcomes;
}

}  // namespace needle
