#include "needle/eval/call_metrics.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "needle/calls/json_value.h"
#include "needle/calls/strip.h"
#include "needle/calls/tool_name.h"
#include "needle/core/format.h"
#include "needle/eval/eval_case.h"
#include "needle/eval/loose_value.h"

namespace needle {
namespace {

using Names = std::set<std::string, std::less<>>;

// One item of an answer, in the form that the rules compare.
struct ReadCall {
  bool is_object = false;
  bool malformed = false;  // a name that is no text, or arguments that are no object
  std::string name;        // empty: none
  JsonValue arguments = JsonValue::object();
  JsonValue shown_arguments = JsonValue::object();  // as written, for messages
  std::string item_key;                             // equal items have equal keys
  std::string call_key;                             // equal name and arguments
  std::string arguments_key;                        // equal arguments
};

JsonValue::Array items_of(const std::optional<JsonValue>& parsed) {
  if (parsed && parsed->is_array()) {
    return parsed->items();
  }
  return parsed && parsed->is_object() ? JsonValue::Array{*parsed} : JsonValue::Array{};
}

std::string named(std::string_view name, const ScoringRules& rules) {
  return rules.snake_case_names ? to_snake_case(name) : std::string(name);
}

ReadCall read_call(JsonValue item, const ScoringRules& rules) {
  ReadCall call;
  call.is_object = item.is_object();
  if (call.is_object) {
    if (const JsonValue* name = item.find("name")) {
      call.malformed = !name->is_string();
      if (name->is_string()) {
        call.name = named(name->as_string(), rules);
        item.set("name", JsonValue::string(call.name));
      }
    }
    if (JsonValue* arguments = item.find("arguments")) {
      call.malformed = call.malformed || !arguments->is_object();
      if (arguments->is_object()) {
        call.shown_arguments = *arguments;
        if (rules.loose_values) {
          for (auto& [key, value] : arguments->members()) {
            value = loosen_value(value);
          }
        }
        call.arguments = *arguments;
      }
    } else if (rules.default_arguments) {
      item.set("arguments", JsonValue::object());
    }
    const JsonValue* arguments = item.find("arguments");
    call.arguments_key = write_canonical(call.arguments);
    call.call_key = (call.malformed ? "malformed " : "") +
                    write_canonical(JsonValue::string(call.name)) +
                    (arguments == nullptr ? "null" : write_canonical(*arguments));
  }
  call.item_key = (call.malformed ? "malformed " : "") + write_canonical(item);
  return call;
}

std::vector<ReadCall> read_calls(const std::optional<JsonValue>& parsed,
                                 const ScoringRules& rules) {
  std::vector<ReadCall> calls;
  for (JsonValue& item : items_of(parsed)) {
    calls.push_back(read_call(std::move(item), rules));
  }
  return calls;
}

// Name to known parameters. Of two tools with one name the later counts.
std::map<std::string, Names, std::less<>> known_keys(std::string_view tools,
                                                     const ScoringRules& rules) {
  std::map<std::string, Names, std::less<>> keys;
  for (const JsonValue& tool : items_of(parse_json_value(tools).value)) {
    const JsonValue* name = tool.find("name");
    if (name == nullptr || !name->is_string()) {
      continue;
    }
    Names& known = keys[named(name->as_string(), rules)];
    known.clear();
    const JsonValue* parameters = tool.find("parameters");
    if (parameters == nullptr || !parameters->is_object()) {
      continue;
    }
    const JsonValue* properties = parameters->find("properties");
    const JsonValue* type = parameters->find("type");
    const bool schema = rules.schema_keys && properties != nullptr && properties->is_object() &&
                        type != nullptr && type->is_string();
    for (const auto& [key, value] : (schema ? properties : parameters)->members()) {
      known.insert(key);
    }
  }
  return keys;
}

Names names_of(const std::vector<ReadCall>& calls) {
  Names names;
  for (const ReadCall& call : calls) {
    if (!call.name.empty()) {
      names.insert(call.name);
    }
  }
  return names;
}

Names keys_of(const std::vector<ReadCall>& calls) {
  Names keys;
  for (const ReadCall& call : calls) {
    if (call.is_object) {
      keys.insert(call.call_key);
    }
  }
  return keys;
}

std::vector<std::string> item_keys(const std::vector<ReadCall>& calls) {
  std::vector<std::string> keys;
  for (const ReadCall& call : calls) {
    keys.push_back(call.item_key);
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

Names difference(const Names& from, const Names& without) {
  Names rest;
  std::set_difference(from.begin(), from.end(), without.begin(), without.end(),
                      std::inserter(rest, rest.end()));
  return rest;
}

MatchCounts match(const Names& predicted, const Names& expected) {
  const auto wrong = static_cast<std::int64_t>(difference(predicted, expected).size());
  return {.matched = static_cast<std::int64_t>(predicted.size()) - wrong,
          .wrong = wrong,
          .missed = static_cast<std::int64_t>(difference(expected, predicted).size())};
}

bool same_call(const ReadCall& a, const ReadCall& b) {
  return a.is_object && b.is_object && !a.malformed && !b.malformed && a.name == b.name &&
         a.arguments_key == b.arguments_key;
}

bool has_equal(const ReadCall& call, const std::vector<ReadCall>& others) {
  return std::any_of(others.begin(), others.end(),
                     [&](const ReadCall& other) { return same_call(call, other); });
}

const ReadCall* first_named(const std::vector<ReadCall>& calls, std::string_view name) {
  const auto found = std::find_if(calls.begin(), calls.end(),
                                  [&](const ReadCall& call) { return call.name == name; });
  return found == calls.end() ? nullptr : &*found;
}

void count_keys(const ReadCall& predicted, const Names& known, const ReadCall* expected,
                CallCounts& counts) {
  for (const auto& [key, value] : predicted.arguments.members()) {
    counts.hallucinated_keys.add(!known.contains(key));
  }
  if (expected == nullptr) {
    return;
  }
  for (const auto& [key, value] : expected->arguments.members()) {
    const JsonValue* written = predicted.arguments.find(key);
    counts.missed_keys.add(written == nullptr);
    if (written != nullptr) {
      counts.values.add(write_canonical(*written) == write_canonical(value));
    }
  }
}

std::string joined(const Names& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ",") + name;
  }
  return text;
}

// A value as written, or what stands for a missing one.
std::string shown(const JsonValue& arguments, std::string_view key) {
  const JsonValue* value = arguments.find(key);
  return value == nullptr ? "\"<MISSING>\"" : write_spaced(*value);
}

void explain_values(const ReadCall& predicted, const ReadCall& expected, const ScoringRules& rules,
                    std::vector<std::string>& reasons) {
  Names keys;
  for (const ReadCall* call : {&predicted, &expected}) {
    for (const auto& [key, value] : call->arguments.members()) {
      keys.insert(key);
    }
  }
  for (const std::string& key : keys) {
    const JsonValue* written = predicted.arguments.find(key);
    const JsonValue* wanted = expected.arguments.find(key);
    if (written != nullptr && wanted != nullptr &&
        write_canonical(*written) == write_canonical(*wanted)) {
      continue;
    }
    reasons.push_back(
        format("{}{}.{}={}!={}", rules.terse_reasons ? "" : "value_mismatch:", predicted.name, key,
               shown(predicted.shown_arguments, key), shown(expected.shown_arguments, key)));
  }
}

}  // namespace

std::size_t count_items(std::string_view json_text) {
  return items_of(parse_json_value(json_text).value).size();
}

double MatchCounts::precision() const {
  return static_cast<double>(matched) /
         static_cast<double>(std::max<std::int64_t>(1, matched + wrong));
}
double MatchCounts::recall() const {
  return static_cast<double>(matched) /
         static_cast<double>(std::max<std::int64_t>(1, matched + missed));
}
double MatchCounts::f1() const {
  return static_cast<double>(2 * matched) /
         static_cast<double>(std::max<std::int64_t>(1, 2 * matched + wrong + missed));
}
MatchCounts& MatchCounts::operator+=(const MatchCounts& other) {
  matched += other.matched;
  wrong += other.wrong;
  missed += other.missed;
  return *this;
}

double HitCounts::ratio() const {
  return static_cast<double>(hits) / static_cast<double>(std::max<std::int64_t>(1, total));
}
void HitCounts::add(bool hit) {
  hits += hit ? 1 : 0;
  ++total;
}
HitCounts& HitCounts::operator+=(const HitCounts& other) {
  hits += other.hits;
  total += other.total;
  return *this;
}

CallCounts& CallCounts::operator+=(const CallCounts& other) {
  for (const auto member :
       {&CallCounts::parsed, &CallCounts::exact, &CallCounts::right_tools,
        &CallCounts::empty_references, &CallCounts::empty_predictions, &CallCounts::false_calls,
        &CallCounts::arguments, &CallCounts::hallucinated_keys, &CallCounts::missed_keys,
        &CallCounts::values}) {
    this->*member += other.*member;
  }
  names += other.names;
  calls += other.calls;
  for (const auto& [name, score] : other.tools) {
    tools[name].correct += score.correct;
    tools[name].total += score.total;
  }
  return *this;
}

ScoredAnswer score_answer(std::string_view prediction, std::string_view reference,
                          std::string_view tools, const ScoringRules& rules) {
  ScoredAnswer scored;
  const std::vector<ReadCall> expected =
      read_calls(parse_json_value(strip_edges(reference)).value, rules);
  if (expected.empty() && rules.with_calls_only) {
    return scored;
  }
  std::string_view text = strip_edges(prediction);
  const bool blank = text.empty();
  if (blank && rules.empty_text_is_no_call) {
    text = "[]";
  }
  const std::optional<JsonValue> parsed = parse_json_value(text).value;
  const std::vector<ReadCall> predicted = read_calls(parsed, rules);
  const bool empty_array = parsed && parsed->is_array() && parsed->items().empty();
  const bool no_call = blank || text == "[]" || (empty_array && !rules.literal_no_call);
  const Names predicted_names = names_of(predicted);
  const Names expected_names = names_of(expected);
  scored.exact = expected.empty() ? no_call : item_keys(predicted) == item_keys(expected);

  CallCounts& counts = scored.counts;
  counts.parsed.add(parsed.has_value());
  counts.exact.add(scored.exact);
  counts.right_tools.add(parsed.has_value() && predicted_names == expected_names);
  counts.empty_references.add(expected.empty());
  counts.empty_predictions.add(no_call);
  if (expected.empty()) {
    counts.false_calls.add(!predicted.empty());
  }
  counts.names = match(predicted_names, expected_names);
  counts.calls = match(keys_of(predicted), keys_of(expected));
  const auto known = known_keys(tools, rules);
  for (const ReadCall& call : predicted) {
    if (call.name.empty()) {
      continue;
    }
    const ReadCall* first = first_named(expected, call.name);
    if (first != nullptr) {
      counts.arguments.add(has_equal(call, expected));
    }
    if (const auto tool = known.find(call.name); tool != known.end()) {
      count_keys(call, tool->second, first, counts);
    }
  }
  for (const ReadCall& call : expected) {
    if (!call.name.empty()) {
      ToolScore& tool = counts.tools[call.name];
      tool.correct += has_equal(call, predicted) ? 1 : 0;
      ++tool.total;
    }
  }
  if (scored.exact) {
    return scored;
  }

  std::vector<std::string>& reasons = scored.reasons;
  if (!parsed && !rules.terse_reasons) {
    reasons.emplace_back("json_parse_error");
  }
  if (expected.empty()) {
    reasons.emplace_back(rules.terse_reasons ? "false_positive" : "false_positive:should_be_empty");
  } else if (no_call) {
    reasons.emplace_back(rules.terse_reasons ? "false_negative" : "false_negative:predicted_empty");
  }
  if (const Names wrong = difference(predicted_names, expected_names); !wrong.empty()) {
    reasons.push_back("wrong_tools:" + joined(wrong));
  }
  if (const Names missing = difference(expected_names, predicted_names); !missing.empty()) {
    reasons.push_back("missing_tools:" + joined(missing));
  }
  for (const ReadCall& call : predicted) {
    if (call.malformed && !rules.terse_reasons) {
      reasons.push_back("malformed_call:" + call.name);
    }
    if (const ReadCall* first = first_named(expected, call.name);
        first != nullptr && !call.name.empty()) {
      explain_values(call, *first, rules, reasons);
    }
  }
  if (reasons.empty()) {
    reasons.emplace_back("unknown");
  }
  std::sort(reasons.begin(), reasons.end());
  return scored;
}

}  // namespace needle
