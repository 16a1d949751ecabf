#include "needle/decode/trace.h"

#include <cmath>
#include <string>
#include <utility>

#include "needle/decode/grounding.h"

namespace needle {
namespace {

JsonValue span_json(const std::optional<TextRange>& range) {
  if (!range) {
    return {};
  }
  return JsonValue::array({JsonValue::integer(static_cast<std::int64_t>(range->begin)),
                           JsonValue::integer(static_cast<std::int64_t>(range->end))});
}

JsonValue piece_json(const Tokenizer& tokenizer, TokenId id) {
  return JsonValue::string(std::string(tokenizer.piece(id)));
}

}  // namespace

JsonValue to_json(const AnswerConfidence& confidence, const CallResult& result,
                  std::string_view query) {
  JsonValue json = JsonValue::object();
  json.set("probability", JsonValue::number(confidence.probability));
  if (confidence.calibrated) {
    json.set("calibrated", JsonValue::number(*confidence.calibrated));
  }
  json.set("no_call", JsonValue::number(confidence.no_call));
  if (confidence.outside) {
    json.set("outside", JsonValue::number(*confidence.outside));
  }
  JsonValue calls = JsonValue::array();
  for (const CallConfidence& call : confidence.calls) {
    JsonValue arguments = JsonValue::array();
    for (const ArgumentConfidence& argument : call.arguments) {
      const auto value = parse_json_value(
          std::string_view(result.raw_text)
              .substr(argument.value.begin, argument.value.end - argument.value.begin));
      JsonValue entry = JsonValue::object();
      entry.set("name", JsonValue::string(argument.name));
      entry.set("probability", JsonValue::number(argument.probability));
      entry.set("query_span",
                span_json(value.value ? find_in_query(query, *value.value) : std::nullopt));
      arguments.items().push_back(std::move(entry));
    }
    JsonValue entry = JsonValue::object();
    entry.set("name", JsonValue::string(call.name));
    entry.set("probability", JsonValue::number(call.probability));
    if (call.calibrated) {
      entry.set("calibrated", JsonValue::number(*call.calibrated));
    }
    entry.set("name_probability", JsonValue::number(call.name_probability));
    entry.set("arguments", std::move(arguments));
    calls.items().push_back(std::move(entry));
  }
  json.set("calls", std::move(calls));
  return json;
}

JsonValue trace_json(const CallResult& result, const Tokenizer& tokenizer) {
  JsonValue tokens = JsonValue::array();
  for (const TokenStep& step : result.steps) {
    const bool free = step.allowed_tokens == tokenizer.vocab_size();
    JsonValue token = JsonValue::object();
    token.set("id", JsonValue::integer(step.id));
    token.set("piece", piece_json(tokenizer, step.id));
    token.set("kind", JsonValue::string(step.forced ? "forced" : free ? "free" : "chosen"));
    token.set("allowed", JsonValue::integer(step.allowed_tokens));
    token.set("probability", JsonValue::number(std::exp(step.log_probability)));
    if (step.outside) {
      token.set("outside", JsonValue::number(*step.outside));
    }
    JsonValue alternatives = JsonValue::array();
    for (const TokenAlternative& other : step.alternatives) {
      JsonValue entry = JsonValue::object();
      entry.set("id", JsonValue::integer(other.id));
      entry.set("piece", piece_json(tokenizer, other.id));
      entry.set("probability", JsonValue::number(std::exp(other.log_probability)));
      entry.set("allowed", JsonValue::boolean(other.allowed));
      alternatives.items().push_back(std::move(entry));
    }
    token.set("alternatives", std::move(alternatives));
    tokens.items().push_back(std::move(token));
  }
  return tokens;
}

}  // namespace needle
