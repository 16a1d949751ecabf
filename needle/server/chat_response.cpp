#include "needle/server/chat_response.h"

#include <algorithm>
#include <utility>

#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/decode/trace.h"

namespace needle {
namespace {

JsonValue text(std::string value) { return JsonValue::string(std::move(value)); }

JsonValue call_json(const CompletionHead& head, const Call& call, std::size_t choice,
                    std::size_t index) {
  // Ids only have to differ; this one says where the call stands.
  JsonValue json = JsonValue::object();
  json.set("id",
           text(format("call_{}_{}_{}", head.id.substr(head.id.find('-') + 1), choice, index)));
  json.set("type", text("function"));
  json.set(
      "function",
      JsonValue::object({{"name", text(call.name)},
                         {"arguments", text(write_compact(call.arguments, JsonEscapes::kUtf8))}}));
  return json;
}

std::string finish_reason(const ChatRequest& request, const CallResult& result, bool has_calls) {
  if (result.stop == StopReason::kMaxTokens) {
    return "length";
  }
  return has_calls && stop_position(result.text, request.stop) == result.text.size() ? "tool_calls"
                                                                                     : "stop";
}

// What is not a list of calls is the model's text; an empty list says nothing.
std::string plain_content(std::string_view answer) {
  const auto parsed = parse_json_value(answer);
  return parsed.value && parsed.value->is_array() && parsed.value->items().empty()
             ? ""
             : std::string(answer);
}

JsonValue choice_json(const CompletionHead& head, const ChatRequest& request,
                      const CallResult& result, const std::string& answer, std::size_t index) {
  const std::string_view kept =
      std::string_view(answer).substr(0, stop_position(answer, request.stop));
  const bool value = !request.call.response_schema.empty();
  const std::vector<Call> calls = value ? std::vector<Call>() : complete_calls(kept);
  JsonValue message = JsonValue::object();
  message.set("role", text("assistant"));
  message.set("content",
              calls.empty() ? text(value ? std::string(kept) : plain_content(kept)) : JsonValue());
  message.set("refusal", JsonValue());
  if (!calls.empty()) {
    JsonValue list = JsonValue::array();
    for (std::size_t i = 0; i < calls.size(); ++i) {
      list.items().push_back(call_json(head, calls[i], index, i));
    }
    message.set("tool_calls", std::move(list));
  }
  JsonValue choice = JsonValue::object();
  choice.set("index", JsonValue::integer(static_cast<std::int64_t>(index)));
  choice.set("message", std::move(message));
  choice.set("logprobs", JsonValue());
  choice.set("finish_reason", text(finish_reason(request, result, !calls.empty())));
  return choice;
}

JsonValue usage_json(const CallResult& result) {
  const std::int64_t prompt = std::ssize(result.prompt_ids);
  const std::int64_t completion = std::ssize(result.ids);
  return JsonValue::object({{"prompt_tokens", JsonValue::integer(prompt)},
                            {"completion_tokens", JsonValue::integer(completion)},
                            {"total_tokens", JsonValue::integer(prompt + completion)}});
}

JsonValue problems_json(const ChatRequest& request, const CallResult& result) {
  JsonValue list = JsonValue::array();
  if (!request.call.response_schema.empty()) {
    return list;
  }
  // Fewer than were offered: those of a shelf that fit the prompt.
  const bool all = request.offered != nullptr && request.offered->json == request.call.tools_json;
  const auto fewer = all ? std::vector<Tool>() : parse_tools_text(request.call.tools_json);
  for (const CallProblem& problem :
       validate_calls(complete_calls(result.text), all ? request.offered->tools : fewer)) {
    list.items().push_back(
        JsonValue::object({{"path", text(problem.path)}, {"message", text(problem.message)}}));
  }
  return list;
}

// The server's own field of a reply: what was ignored, whether the calls are valid, times, and the
// model's confidence and trace where they were asked for.
JsonValue extension_json(const ChatRequest& request, const CallResult& result,
                         const CompletionTimes& times, const Tokenizer* tokenizer) {
  JsonValue json = JsonValue::object();
  JsonValue ignored = JsonValue::array();
  for (const std::string& name : request.ignored) {
    ignored.items().push_back(text(name));
  }
  json.set("ignored", std::move(ignored));
  json.set("problems", problems_json(request, result));
  JsonValue unenforced = JsonValue::array();
  for (const Unenforced& item : result.unenforced) {
    unenforced.items().push_back(JsonValue::object({{"path", text(item.path)},
                                                    {"keyword", text(item.keyword)},
                                                    {"reason", text(item.reason)}}));
  }
  json.set("unenforced", std::move(unenforced));
  json.set("stop", text(std::string(kStopReasonNames.name(result.stop))));
  json.set("forced_tokens", JsonValue::integer(result.forced_tokens));
  json.set("queue_ms", JsonValue::number(times.queue_ms));
  json.set("model_ms", JsonValue::number(times.model_ms));
  json.set("prefill_ms", JsonValue::number(1e3 * result.prefill_seconds));
  json.set("decode_ms", JsonValue::number(1e3 * result.decode_seconds));
  if (result.confidence) {
    json.set("confidence", to_json(*result.confidence, result, request.call.query));
  }
  if (!result.n_best.empty()) {
    JsonValue probabilities = JsonValue::array();
    for (const RankedAnswer& answer : result.n_best) {
      probabilities.items().push_back(JsonValue::number(answer.probability));
    }
    json.set("choice_probabilities", std::move(probabilities));
  }
  if (request.trace && tokenizer != nullptr) {
    json.set("trace", trace_json(result, *tokenizer));
  }
  return json;
}

JsonValue head_json(const CompletionHead& head, std::string object) {
  return JsonValue::object({{"id", text(head.id)},
                            {"object", text(std::move(object))},
                            {"created", JsonValue::integer(head.created)},
                            {"model", text(head.model)},
                            {"system_fingerprint", text(head.fingerprint)}});
}

}  // namespace

std::vector<std::string> ElementScanner::add(std::string_view piece) {
  std::vector<std::string> complete;
  for (const char c : piece) {
    if (depth_ >= 2) {
      element_.push_back(c);
    }
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
      continue;
    }
    if (c == '"') {
      in_string_ = true;
    } else if (c == '[' || c == '{') {
      if (++depth_ == 2) {
        element_.assign(1, c);
      }
    } else if ((c == ']' || c == '}') && depth_ > 0) {
      if (--depth_ == 1) {
        complete.push_back(std::exchange(element_, {}));
      }
    }
  }
  return complete;
}

std::vector<Call> complete_calls(std::string_view answer) {
  std::vector<Call> calls;
  if (!answer.substr(std::min(answer.find_first_not_of(" \n"), answer.size())).starts_with('[')) {
    return calls;
  }
  for (const std::string& element : ElementScanner().add(answer)) {
    try {
      for (Call& call : parse_calls_text("[" + element + "]")) {
        calls.push_back(std::move(call));
      }
    } catch (const DataError&) {
      break;
    }
  }
  return calls;
}

std::size_t stop_position(std::string_view answer, const std::vector<std::string>& stop) {
  std::size_t position = answer.size();
  for (const std::string& end : stop) {
    position = std::min(position, answer.find(end));
  }
  return position;
}

JsonValue completion_json(const CompletionHead& head, const ChatRequest& request,
                          const CallResult& result, const CompletionTimes& times,
                          const Tokenizer* tokenizer) {
  JsonValue choices = JsonValue::array();
  if (request.choices > 1 && !result.n_best.empty()) {
    for (std::size_t i = 0; i < result.n_best.size(); ++i) {
      choices.items().push_back(choice_json(head, request, result, result.n_best[i].text, i));
    }
  } else {
    choices.items().push_back(choice_json(head, request, result, result.text, 0));
  }
  JsonValue json = head_json(head, "chat.completion");
  json.set("choices", std::move(choices));
  json.set("usage", usage_json(result));
  json.set("needle", extension_json(request, result, times, tokenizer));
  return json;
}

std::string event(const JsonValue& value) {
  return "data: " + write_compact(value, JsonEscapes::kUtf8) + "\n\n";
}

CompletionStream::CompletionStream(CompletionHead head, const ChatRequest& request)
    : head_(std::move(head)),
      request_(request),
      names_(normalize_tool_names(request.call.tools_json)) {}

std::string CompletionStream::chunk(JsonValue delta, JsonValue reason) const {
  JsonValue json = head_json(head_, "chat.completion.chunk");
  JsonValue choice = JsonValue::object({{"index", JsonValue::integer(0)},
                                        {"delta", std::move(delta)},
                                        {"logprobs", JsonValue()},
                                        {"finish_reason", std::move(reason)}});
  json.set("choices", JsonValue::array({std::move(choice)}));
  return event(json);
}

std::string CompletionStream::begin() const {
  return chunk(JsonValue::object({{"role", text("assistant")}, {"content", JsonValue()}}), {});
}

std::string CompletionStream::call_event(const Call& call) {
  JsonValue json = call_json(head_, call, 0, sent_);
  JsonValue delta =
      JsonValue::object({{"index", JsonValue::integer(static_cast<std::int64_t>(sent_))}});
  for (auto& [key, value] : json.members()) {
    delta.set(key, std::move(value));
  }
  ++sent_;
  return chunk(JsonValue::object({{"tool_calls", JsonValue::array({std::move(delta)})}}), {});
}

std::string CompletionStream::add(std::string_view piece) {
  std::string events;
  if (!request_.call.response_schema.empty()) {
    return events;  // sent whole
  }
  for (const std::string& element : scanner_.add(piece)) {
    for (const Call& call : complete_calls(restore_tool_names("[" + element + "]", names_))) {
      events += call_event(call);
    }
  }
  return events;
}

std::string CompletionStream::finish(const CallResult& result, const CompletionTimes& times,
                                     const Tokenizer* tokenizer) {
  std::string events;
  const std::string kept = result.text.substr(0, stop_position(result.text, request_.stop));
  const bool value = !request_.call.response_schema.empty();
  const std::vector<Call> calls = value ? std::vector<Call>() : complete_calls(kept);
  for (std::size_t i = sent_; i < calls.size(); ++i) {
    events += call_event(calls[i]);
  }
  if (const std::string content = value ? kept : plain_content(kept);
      calls.empty() && !content.empty()) {
    events += chunk(JsonValue::object({{"content", text(content)}}), {});
  }
  events += chunk(JsonValue::object(), text(finish_reason(request_, result, !calls.empty())));
  JsonValue last = head_json(head_, "chat.completion.chunk");
  last.set("choices", JsonValue::array());
  if (request_.include_usage) {
    last.set("usage", usage_json(result));
  }
  last.set("needle", extension_json(request_, result, times, tokenizer));
  return events + event(last) + "data: [DONE]\n\n";
}

}  // namespace needle
