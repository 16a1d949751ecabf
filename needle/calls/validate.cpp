// The checking half of call.h: a call against its tool's JSON Schema.
#include <algorithm>
#include <cmath>
#include <optional>

#include "needle/calls/call.h"
#include "needle/core/fields.h"
#include "needle/core/format.h"

namespace needle {
namespace {

std::string suggestion(std::string_view name, const std::vector<std::string>& known) {
  const auto nearest = nearest_name(name, known);
  return nearest ? format("; did you mean '{}'?", *nearest) : std::string();
}

bool has_type(const JsonValue& value, std::string_view type) {
  if (type == "string") {
    return value.is_string();
  }
  if (type == "boolean") {
    return value.is_bool();
  }
  if (type == "null") {
    return value.is_null();
  }
  if (type == "array") {
    return value.is_array();
  }
  if (type == "object") {
    return value.is_object();
  }
  if (type == "number") {
    return value.is_number() && std::isfinite(value.as_double());
  }
  if (type == "integer") {  // JSON Schema: 5.0 is one too
    return value.is_integer() || (value.is_number() && std::isfinite(value.as_double()) &&
                                  std::trunc(value.as_double()) == value.as_double());
  }
  return true;  // a type that says nothing
}

class Validator {
 public:
  explicit Validator(std::vector<CallProblem>& problems) : problems_(problems) {}

  void check(const JsonValue& value, const JsonValue& schema, const std::string& path) {
    if (!schema.is_object() || !check_alternatives(value, schema, path) ||
        !check_type(value, schema, path)) {
      return;
    }
    check_listed(value, schema, path);
    if (value.is_number()) {
      check_range(value.as_double(), schema, path);
    } else if (value.is_string()) {
      check_size("characters", code_points(value.as_string()), schema, "minLength", "maxLength",
                 path);
    } else if (value.is_array()) {
      check_size("items", static_cast<std::int64_t>(value.items().size()), schema, "minItems",
                 "maxItems", path);
      if (const JsonValue* items = schema.find("items")) {
        for (std::size_t i = 0; i < value.items().size(); ++i) {
          check(value.items()[i], *items, format("{}[{}]", path, i));
        }
      }
    } else if (value.is_object()) {
      check_object(value, schema, path);
    }
  }

 private:
  void report(const std::string& path, std::string message) {
    problems_.push_back({.path = path, .message = std::move(message)});
  }

  // anyOf and oneOf: one alternative without a problem is enough.
  bool check_alternatives(const JsonValue& value, const JsonValue& schema,
                          const std::string& path) {
    for (const std::string_view key : {"anyOf", "oneOf"}) {
      const JsonValue* alternatives = schema.find(key);
      if (alternatives == nullptr || !alternatives->is_array() || alternatives->items().empty()) {
        continue;
      }
      const bool any = std::any_of(alternatives->items().begin(), alternatives->items().end(),
                                   [&](const JsonValue& alternative) {
                                     std::vector<CallProblem> found;
                                     Validator(found).check(value, alternative, path);
                                     return found.empty();
                                   });
      if (!any) {
        report(path, format("fits none of the declared alternatives: {}", excerpt(value)));
        return false;
      }
    }
    return true;
  }

  bool check_type(const JsonValue& value, const JsonValue& schema, const std::string& path) {
    const JsonValue* nullable = schema.find("nullable");
    if (value.is_null() && nullable != nullptr && nullable->is_bool() && nullable->as_bool()) {
      return false;  // null is fine, and nothing else applies to it
    }
    const JsonValue* declared = schema.find("type");
    if (declared == nullptr) {
      return true;
    }
    std::string names;
    const auto fits = [&](const JsonValue& name) {
      const std::string_view type =
          name.is_string() ? json_schema_type(name.as_string()) : std::string_view();
      names += (names.empty() ? "" : " or ") + std::string(type);
      return type.empty() || has_type(value, type);
    };
    const bool ok = declared->is_array()
                        ? declared->items().empty() ||
                              std::any_of(declared->items().begin(), declared->items().end(), fits)
                        : fits(*declared);
    if (!ok) {
      report(path, format("expected {} {}, got {}", names.find_first_of("aeiou") == 0 ? "an" : "a",
                          names, excerpt(value)));
    }
    return ok;
  }

  void check_listed(const JsonValue& value, const JsonValue& schema, const std::string& path) {
    if (const JsonValue* listed = schema.find("enum"); listed != nullptr && listed->is_array()) {
      const auto& allowed = listed->items();
      if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
        report(path, format("expected one of {}, got {}", excerpt(*listed), excerpt(value)));
      }
    }
    if (const JsonValue* constant = schema.find("const");
        constant != nullptr && !(*constant == value)) {
      report(path, format("expected {}, got {}", excerpt(*constant), excerpt(value)));
    }
  }

  void check_range(double value, const JsonValue& schema, const std::string& path) {
    const auto bound = [&schema](std::string_view key) -> std::optional<double> {
      const JsonValue* limit = schema.find(key);
      return limit != nullptr && limit->is_number() ? std::optional(limit->as_double())
                                                    : std::nullopt;
    };
    const auto is_true = [&schema](std::string_view key) {  // draft 4: exclusiveMinimum is a flag
      const JsonValue* flag = schema.find(key);
      return flag != nullptr && flag->is_bool() && flag->as_bool();
    };
    if (const auto least = bound("minimum");
        least && (value < *least || (value == *least && is_true("exclusiveMinimum")))) {
      report(path, format("{} is below the minimum {}", value, *least));
    }
    if (const auto most = bound("maximum");
        most && (value > *most || (value == *most && is_true("exclusiveMaximum")))) {
      report(path, format("{} is above the maximum {}", value, *most));
    }
    if (const auto least = bound("exclusiveMinimum"); least && value <= *least) {
      report(path, format("{} is not above {}", value, *least));
    }
    if (const auto most = bound("exclusiveMaximum"); most && value >= *most) {
      report(path, format("{} is not below {}", value, *most));
    }
  }

  void check_size(std::string_view unit, std::int64_t size, const JsonValue& schema,
                  std::string_view least_key, std::string_view most_key, const std::string& path) {
    if (const JsonValue* least = schema.find(least_key);
        least != nullptr && least->is_number() && static_cast<double>(size) < least->as_double()) {
      report(path, format("{} {}, at least {} expected", size, unit, least->number_text()));
    }
    if (const JsonValue* most = schema.find(most_key);
        most != nullptr && most->is_number() && static_cast<double>(size) > most->as_double()) {
      report(path, format("{} {}, at most {} expected", size, unit, most->number_text()));
    }
  }

  void check_object(const JsonValue& value, const JsonValue& schema, const std::string& path) {
    const JsonValue* properties = schema.find("properties");
    const JsonValue* additional = schema.find("additionalProperties");
    const bool open = additional != nullptr && !(additional->is_bool() && !additional->as_bool());
    for (const auto& [key, member] : value.members()) {
      const std::string member_path = path + "." + key;
      const JsonValue* declared = properties != nullptr ? properties->find(key) : nullptr;
      if (declared != nullptr) {
        check(member, *declared, member_path);
      } else if (open) {
        check(member, *additional, member_path);
      } else if (properties != nullptr || additional != nullptr) {
        report(member_path, "unknown key");
      }
    }
    if (const JsonValue* required = schema.find("required");
        required != nullptr && required->is_array()) {
      for (const JsonValue& name : required->items()) {
        if (name.is_string() && value.find(name.as_string()) == nullptr) {
          report(path + "." + name.as_string(), "required, but missing");
        }
      }
    }
  }

  static std::int64_t code_points(std::string_view text) {
    return std::count_if(text.begin(), text.end(),
                         [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
  }

  std::vector<CallProblem>& problems_;
};

bool allows_more_parameters(const Tool& tool) {
  const JsonValue* parameters = tool.declared.find("parameters");
  const JsonValue* additional = parameters != nullptr && is_json_schema(*parameters)
                                    ? parameters->find("additionalProperties")
                                    : nullptr;
  return additional != nullptr && !(additional->is_bool() && !additional->as_bool());
}

void validate_call(const Call& call, const Tool& tool, const std::string& path,
                   std::vector<CallProblem>& problems) {
  if (!call.arguments.is_object()) {
    problems.push_back({path, format("expected an object, got {}", excerpt(call.arguments))});
    return;
  }
  for (const auto& [key, value] : call.arguments.members()) {
    const std::string value_path = path + "." + key;
    if (const ToolParameter* parameter = tool.find_parameter(key)) {
      Validator(problems).check(value, parameter->schema, value_path);
    } else if (!allows_more_parameters(tool)) {
      std::vector<std::string> known;
      for (const ToolParameter& declared : tool.parameters) {
        known.push_back(declared.name);
      }
      problems.push_back(
          {value_path, format("'{}' has no such parameter{}", tool.name, suggestion(key, known))});
    }
  }
  for (const ToolParameter& parameter : tool.parameters) {
    if (parameter.required && call.arguments.find(parameter.name) == nullptr) {
      problems.push_back({path + "." + parameter.name, "required, but missing"});
    }
  }
}

}  // namespace

std::vector<CallProblem> validate_calls(std::span<const Call> calls, std::span<const Tool> tools) {
  std::vector<CallProblem> problems;
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const auto tool = std::find_if(tools.begin(), tools.end(), [&](const Tool& candidate) {
      return candidate.name == calls[i].name;
    });
    if (tool != tools.end()) {
      validate_call(calls[i], *tool, format("[{}].arguments", i), problems);
      continue;
    }
    std::vector<std::string> known;
    for (const Tool& candidate : tools) {
      known.push_back(candidate.name);
    }
    problems.push_back({format("[{}].name", i), format("unknown tool '{}'{}", calls[i].name,
                                                       suggestion(calls[i].name, known))});
  }
  return problems;
}

}  // namespace needle
