#include "needle/core/fields.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace needle {
namespace {

// Insertions, deletions, substitutions and swaps of neighbours ("optimal string alignment").
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before_last(b.size() + 1);
  std::vector<std::size_t> last(b.size() + 1);
  std::vector<std::size_t> current(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) {
    last[j] = j;
  }
  for (std::size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substitution = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({last[j] + 1, current[j - 1] + 1, substitution});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, current);
  }
  return last[b.size()];
}

// A value in a message: cut short, never the whole file.
std::string shown(const Json& json) {
  constexpr std::size_t kLongest = 60;
  if (json.is_object()) {
    return "an object";
  }
  if (json.is_array()) {
    return "a list";
  }
  std::string text = json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kLongest) {
    text = text.substr(0, kLongest) + "...";
  }
  return text;
}

[[noreturn]] void throw_at(const internal::FieldPlace& place, std::string_view message) {
  if (place.path.empty()) {
    throw ConfigError(format("{}: {}", place.where, message));
  }
  throw ConfigError(format("{}: {}: {}", place.where, place.path, message));
}

[[noreturn]] void throw_wrong_type(std::string_view expected, const Json& got,
                                   const internal::FieldPlace& place) {
  throw_at(place, format("expected {}, got {}", expected, shown(got)));
}

std::string join(std::span<const std::string> names) {
  std::string joined;
  for (const std::string& name : names) {
    joined += (joined.empty() ? "" : ", ") + name;
  }
  return joined;
}

}  // namespace

std::optional<std::string> nearest_name(std::string_view name,
                                        std::span<const std::string> candidates) {
  constexpr std::size_t kLongestName = 256;  // the table below is name times candidate
  std::optional<std::string> nearest;
  std::size_t nearest_distance = 0;
  for (const std::string& candidate : candidates) {
    const std::size_t longer = std::max(name.size(), candidate.size());
    if (longer > kLongestName) {
      continue;
    }
    const std::size_t distance = edit_distance(name, candidate);
    const bool is_near = distance <= std::max<std::size_t>(1, longer / 3);
    if (is_near && (!nearest || distance < nearest_distance)) {
      nearest = candidate;
      nearest_distance = distance;
    }
  }
  return nearest;
}

namespace internal {

FieldPlace FieldPlace::child(std::string_view name) const {
  return {.where = where, .path = path.empty() ? std::string(name) : format("{}.{}", path, name)};
}

FieldPlace FieldPlace::item(std::size_t index) const {
  return {.where = where, .path = format("{}[{}]", path, index)};
}

bool read_bool(const Json& json, const FieldPlace& place) {
  if (!json.is_boolean()) {
    throw_wrong_type("true or false", json, place);
  }
  return json.get<bool>();
}

std::int64_t read_signed(const Json& json, const FieldPlace& place, std::int64_t min,
                         std::int64_t max) {
  if (!json.is_number_integer()) {
    throw_wrong_type("an integer", json, place);
  }
  const bool too_large =
      json.is_number_unsigned() && json.get<std::uint64_t>() > static_cast<std::uint64_t>(max);
  if (too_large || json.get<std::int64_t>() < min || json.get<std::int64_t>() > max) {
    throw_wrong_type(format("an integer from {} to {}", min, max), json, place);
  }
  return json.get<std::int64_t>();
}

CountOrAuto read_count_or_auto(const Json& json, const FieldPlace& place) {
  if (json.is_string() && json.get<std::string>() == "auto") {
    return {.is_auto = true};
  }
  if (!json.is_number_integer() || json.is_number_float() || json.get<std::int64_t>() < 0) {
    throw_wrong_type("a number of 0 or more, or \"auto\"", json, place);
  }
  return {.count = json.get<std::int64_t>()};
}

std::uint64_t read_unsigned(const Json& json, const FieldPlace& place, std::uint64_t max) {
  if (!json.is_number_integer()) {
    throw_wrong_type("an integer", json, place);
  }
  // nlohmann keeps a non-negative number of a file as unsigned, one built in code perhaps as
  // signed.
  const bool negative = !json.is_number_unsigned() && json.get<std::int64_t>() < 0;
  if (negative || json.get<std::uint64_t>() > max) {
    throw_wrong_type(format("an integer from 0 to {}", max), json, place);
  }
  return json.get<std::uint64_t>();
}

double read_double(const Json& json, const FieldPlace& place) {
  if (!json.is_number()) {
    throw_wrong_type("a number", json, place);
  }
  return json.get<double>();
}

std::string read_string(const Json& json, const FieldPlace& place) {
  if (!json.is_string()) {
    throw_wrong_type("a string", json, place);
  }
  return json.get<std::string>();
}

const Json& read_array(const Json& json, const FieldPlace& place) {
  if (!json.is_array()) {
    throw_wrong_type("a list", json, place);
  }
  return json;
}

void throw_unknown_enum(const std::string& got, const std::string& valid, const FieldPlace& place) {
  throw_at(place, format("expected one of {}, got {}", valid, shown(Json(got))));
}

Json finite_to_json(double value, std::string_view path) {
  NEEDLE_CHECK(std::isfinite(value), "field {} is {}: JSON has no such number", path, value);
  return Json(value);
}

ObjectReader::ObjectReader(const Json& json, const FieldPlace& place) : json_(json), place_(place) {
  if (!json.is_object()) {
    throw_wrong_type("an object", json, place);
  }
}

const Json* ObjectReader::take(std::string_view name) {
  known_.emplace_back(name);
  const auto found = json_.find(known_.back());
  return found == json_.end() ? nullptr : &*found;
}

void ObjectReader::finish() const {
  for (const auto& [key, value] : json_.items()) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) {
      continue;
    }
    const FieldPlace place = place_.child(shown(Json(key)));
    if (const auto nearest = nearest_name(key, known_)) {
      throw_at(place, format("unknown field; did you mean \"{}\"?", *nearest));
    }
    throw_at(place, format("unknown field; known here: {}", join(known_)));
  }
}

Override parse_override(std::string_view assignment, bool as_text) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw ConfigError(format("--set {}: expected path=value, e.g. model.d_model=256", assignment));
  }
  const std::string_view path = assignment.substr(0, equals);
  const std::string text(assignment.substr(equals + 1));
  Override result{.json = text, .is_text = true};
  if (!as_text) {
    try {
      result = {.json = parse_json(text, "--set"), .is_text = false};
    } catch (const FormatError&) {
      result = {.json = text, .is_text = true};  // an unquoted string
    }
  }
  constexpr std::ptrdiff_t kMaxDots = 50;
  if (std::count(path.begin(), path.end(), '.') > kMaxDots) {
    throw ConfigError(format("--set {}: the path has too many parts", assignment));
  }
  std::size_t end = path.size();
  for (;;) {  // from the last name to the first, wrapping the value in one object each
    const std::size_t dot = end == 0 ? std::string_view::npos : path.rfind('.', end - 1);
    const std::size_t begin = dot == std::string_view::npos ? 0 : dot + 1;
    if (begin == end) {
      throw ConfigError(format("--set {}: a name in the path is empty", assignment));
    }
    Json wrapped = Json::object();
    wrapped[std::string(path.substr(begin, end - begin))] = std::move(result.json);
    result.json = std::move(wrapped);
    if (begin == 0) {
      return result;
    }
    end = dot;
  }
}

}  // namespace internal
}  // namespace needle
