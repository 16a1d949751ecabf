#include "needle/calls/tool_name.h"

#include <algorithm>
#include <map>
#include <set>

#include "needle/calls/tool.h"
#include "needle/calls/utf8.h"
#include "needle/core/format.h"

namespace needle {
namespace {

bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The string under "name", or nullptr.
JsonValue* name_of(JsonValue& object) {
  JsonValue* name = object.find("name");
  return name != nullptr && name->is_string() ? name : nullptr;
}

// The reference's dict: a repeated snake name keeps its place and takes the later original.
void assign(std::vector<std::pair<std::string, std::string>>& original_by_snake,
            const std::string& snake, const std::string& original) {
  const auto found = std::find_if(original_by_snake.begin(), original_by_snake.end(),
                                  [&](const auto& entry) { return entry.first == snake; });
  if (found != original_by_snake.end()) {
    found->second = original;
  } else {
    original_by_snake.emplace_back(snake, original);
  }
}

// One snake name for each different original name: a name that is in snake_case already comes
// first.
std::map<std::string, std::string> unique_names(const JsonValue::Array& tools) {
  std::map<std::string, std::string> snake_by_original;
  std::set<std::string> taken;
  for (const bool only_unchanged : {true, false}) {
    for (std::size_t i = 0; i < tools.size(); ++i) {
      const JsonValue* name = tools[i].find("name");
      if (name == nullptr || !name->is_string() || snake_by_original.contains(name->as_string())) {
        continue;
      }
      std::string snake = to_snake_case(name->as_string());
      if (only_unchanged && snake != name->as_string()) {
        continue;
      }
      if (snake.empty()) {
        snake = format("tool_{}", i + 1);
      }
      std::string unique = snake;
      for (int suffix = 2; !taken.insert(unique).second; ++suffix) {
        unique = format("{}_{}", snake, suffix);
      }
      snake_by_original.emplace(name->as_string(), std::move(unique));
    }
  }
  return snake_by_original;
}

// Python's str.replace: an empty pattern matches before every character and at the end.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  std::size_t at = 0;
  if (from.empty()) {
    while (at < text.size()) {
      const std::size_t length = std::max<std::size_t>(1, utf8_length_at(text, at));
      result.append(to).append(text, at, length);
      at += length;
    }
    return result.append(to);
  }
  for (std::size_t found; (found = text.find(from, at)) != std::string_view::npos;
       at = found + from.size()) {
    result.append(text, at, found - at).append(to);
  }
  return result.append(text, at);
}

std::string replace_names(std::string_view text,
                          std::vector<std::pair<std::string, std::string>> names) {
  std::stable_sort(names.begin(), names.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  std::string result(text);
  for (const auto& [snake, original] : names) {
    result = replace_all(result, snake, replace_invalid_utf8(original));
  }
  return result;
}

}  // namespace

std::string to_snake_case(std::string_view name) {
  std::string words;
  for (const char c : name) {
    words.push_back(is_upper(c) || is_lower(c) || is_digit(c) ? c : '_');
  }
  std::string snake;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const char c = words[i];
    const char before = i > 0 ? words[i - 1] : '_';
    const char after = i + 1 < words.size() ? words[i + 1] : '_';
    const bool starts_word = is_upper(c) && (is_lower(before) || is_digit(before) ||
                                             (is_upper(before) && is_lower(after)));
    if ((starts_word || c == '_') && !snake.empty() && snake.back() != '_') {
      snake.push_back('_');
    }
    if (c != '_') {
      snake.push_back(is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c);
    }
  }
  if (!snake.empty() && snake.back() == '_') {
    snake.pop_back();
  }
  return snake;
}

NormalizedTools normalize_tool_names(std::string_view tools_json, NameStyle style,
                                     JsonEscapes escapes) {
  NormalizedTools result;
  result.tools_json = std::string(tools_json);
  JsonParseResult parsed = parse_json_value(tools_json);
  if (!parsed.value) {
    return result;
  }
  JsonValue tools = style == NameStyle::kUnique ? unwrap_tools(std::move(*parsed.value))
                                                : std::move(*parsed.value);
  if (!tools.is_array()) {
    return result;
  }
  const auto unique = style == NameStyle::kUnique ? unique_names(tools.items())
                                                  : std::map<std::string, std::string>();
  for (JsonValue& tool : tools.items()) {
    if (style == NameStyle::kUnique && tool.is_object()) {
      std::erase_if(tool.members(),
                    [](const auto& member) { return member.first == kToolTemplatesKey; });
    }
    if (JsonValue* name = name_of(tool)) {
      const std::string original = name->as_string();
      const std::string snake =
          style == NameStyle::kUnique ? unique.at(original) : to_snake_case(original);
      assign(result.original_by_snake, snake, original);
      *name = JsonValue::string(snake);
    }
  }
  result.tools_json = write_compact(tools, escapes);
  return result;
}

std::string restore_tool_names(std::string_view text, const NormalizedTools& tools,
                               JsonEscapes escapes) {
  if (tools.original_by_snake.empty()) {
    return std::string(text);
  }
  JsonParseResult parsed = parse_json_value(text);
  if (!parsed.value) {
    return replace_names(text, tools.original_by_snake);
  }
  const auto restore = [&tools](JsonValue& call) {
    JsonValue* name = name_of(call);
    for (const auto& [snake, original] : tools.original_by_snake) {
      if (name != nullptr && name->as_string() == snake) {
        *name = JsonValue::string(original);
        return;
      }
    }
  };
  if (parsed.value->is_array()) {
    for (JsonValue& call : parsed.value->items()) {
      restore(call);
    }
  } else {
    restore(*parsed.value);
  }
  return write_compact(*parsed.value, escapes);
}

}  // namespace needle
