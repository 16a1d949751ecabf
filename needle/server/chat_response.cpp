#include "needle/server/chat_response.h"

#include <algorithm>
#include <span>
#include <utility>

#include "needle/calls/json_writer.h"
#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/decode/trace.h"

namespace needle {
namespace {

// The members of a call; the object is the caller's.
void write_call(JsonWriter& json, const CompletionHead& head, const Call& call, std::size_t choice,
                std::size_t index) {
  // Ids only have to differ; this one says where the call stands.
  std::string id = "call_";
  id += std::string_view(head.id).substr(head.id.find('-') + 1);
  id += '_';
  id += std::to_string(choice);
  id += '_';
  id += std::to_string(index);
  json.key("id").string(id).key("type").string("function").key("function").begin_object();
  json.key("name").string(call.name);
  json.key("arguments").string(write_compact(call.arguments, JsonEscapes::kUtf8)).end_object();
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

void write_choice(JsonWriter& json, const CompletionHead& head, const ChatRequest& request,
                  const CallResult& result, std::string_view kept, std::span<const Call> calls,
                  std::size_t index) {
  const bool value = !request.call.response_schema.empty();
  json.begin_object().key("index").integer(static_cast<std::int64_t>(index));
  json.key("message").begin_object().key("role").string("assistant").key("content");
  if (calls.empty()) {
    json.string(value ? std::string(kept) : plain_content(kept));
  } else {
    json.null();
  }
  json.key("refusal").null();
  if (!calls.empty()) {
    json.key("tool_calls").begin_array();
    for (std::size_t i = 0; i < calls.size(); ++i) {
      json.begin_object();
      write_call(json, head, calls[i], index, i);
      json.end_object();
    }
    json.end_array();
  }
  json.end_object().key("logprobs").null();
  json.key("finish_reason").string(finish_reason(request, result, !calls.empty())).end_object();
}

void write_usage(JsonWriter& json, const CallResult& result) {
  const std::int64_t prompt = std::ssize(result.prompt_ids);
  const std::int64_t completion = std::ssize(result.ids);
  json.key("usage").begin_object().key("prompt_tokens").integer(prompt);
  json.key("completion_tokens").integer(completion);
  json.key("total_tokens").integer(prompt + completion).end_object();
}

// `calls`: those of the answer.
void write_problems(JsonWriter& json, const ChatRequest& request, std::span<const Call> calls) {
  json.key("problems").begin_array();
  if (request.call.response_schema.empty()) {
    // Fewer than were offered: those of a shelf that fit the prompt.
    const bool all = request.offered != nullptr && request.offered->json == request.call.tools_json;
    const auto fewer = all ? std::vector<Tool>() : parse_tools_text(request.call.tools_json);
    for (const CallProblem& problem : validate_calls(calls, all ? request.offered->tools : fewer)) {
      json.begin_object().key("path").string(problem.path);
      json.key("message").string(problem.message).end_object();
    }
  }
  json.end_array();
}

// The server's own field of a reply: what was ignored, whether the calls are valid, times, and the
// model's confidence and trace where they were asked for.
void write_extension(JsonWriter& json, const ChatRequest& request, const CallResult& result,
                     std::span<const Call> calls, const CompletionTimes& times,
                     const Tokenizer* tokenizer) {
  json.key("needle").begin_object().key("ignored").begin_array();
  for (const std::string& name : request.ignored) {
    json.string(name);
  }
  json.end_array();
  write_problems(json, request, calls);
  json.key("unenforced").begin_array();
  for (const Unenforced& item : result.unenforced) {
    json.begin_object().key("path").string(item.path).key("keyword").string(item.keyword);
    json.key("reason").string(item.reason).end_object();
  }
  json.end_array();
  json.key("stop").string(kStopReasonNames.name(result.stop));
  json.key("forced_tokens").integer(result.forced_tokens);
  json.key("queue_ms").thousandths(times.queue_ms);
  json.key("model_ms").thousandths(times.model_ms);
  json.key("prefill_ms").thousandths(1e3 * result.prefill_seconds);
  json.key("decode_ms").thousandths(1e3 * result.decode_seconds);
  if (result.confidence) {
    json.key("confidence").value(to_json(*result.confidence, result, request.call.query));
  }
  if (!result.n_best.empty()) {
    json.key("choice_probabilities").begin_array();
    for (const RankedAnswer& answer : result.n_best) {
      json.value(JsonValue::number(answer.probability));
    }
    json.end_array();
  }
  if (request.trace && tokenizer != nullptr) {
    json.key("trace").value(trace_json(result, *tokenizer));
  }
  json.end_object();
}

// Begins the object.
void write_head(JsonWriter& json, const CompletionHead& head, std::string_view object) {
  json.begin_object().key("id").string(head.id).key("object").string(object);
  json.key("created").integer(head.created).key("model").string(head.model);
  json.key("system_fingerprint").string(head.fingerprint);
}

std::string_view before_stop(const ChatRequest& request, std::string_view answer) {
  return answer.substr(0, stop_position(answer, request.stop));
}

// None where the answer is a value.
std::vector<Call> calls_of(const ChatRequest& request, std::string_view answer) {
  return request.call.response_schema.empty() ? complete_calls(answer) : std::vector<Call>();
}

std::string event_text(std::string_view json) {
  std::string event = "data: ";
  event += json;
  event += "\n\n";
  return event;
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

std::string completion_text(const CompletionHead& head, const ChatRequest& request,
                            const CallResult& result, const CompletionTimes& times,
                            const Tokenizer* tokenizer) {
  JsonWriter json;
  write_head(json, head, "chat.completion");
  json.key("choices").begin_array();
  const std::vector<Call> calls = calls_of(request, result.text);
  if (request.choices > 1 && !result.n_best.empty()) {
    for (std::size_t i = 0; i < result.n_best.size(); ++i) {
      const std::string_view kept = before_stop(request, result.n_best[i].text);
      write_choice(json, head, request, result, kept, calls_of(request, kept), i);
    }
  } else {
    const std::string_view kept = before_stop(request, result.text);
    const bool whole = kept.size() == result.text.size();
    write_choice(json, head, request, result, kept, whole ? calls : calls_of(request, kept), 0);
  }
  json.end_array();
  write_usage(json, result);
  write_extension(json, request, result, calls, times, tokenizer);
  return json.end_object().take();
}

std::string event(const JsonValue& value) {
  return event_text(write_compact(value, JsonEscapes::kUtf8));
}

CompletionStream::CompletionStream(CompletionHead head, const ChatRequest& request)
    : head_(std::move(head)),
      request_(request),
      names_(normalize_tool_names(request.call.tools_json)) {}

// `delta`: an object. `reason`: "" for none yet.
std::string CompletionStream::chunk(std::string_view delta, std::string_view reason) const {
  JsonWriter json;
  write_head(json, head_, "chat.completion.chunk");
  json.key("choices").begin_array().begin_object().key("index").integer(0);
  json.key("delta").raw(delta).key("logprobs").null().key("finish_reason");
  if (reason.empty()) {
    json.null();
  } else {
    json.string(reason);
  }
  json.end_object().end_array().end_object();
  return event_text(json.text());
}

std::string CompletionStream::begin() const {
  return chunk(R"({"role":"assistant","content":null})", "");
}

std::string CompletionStream::call_event(const Call& call) {
  JsonWriter delta;
  delta.begin_object().key("tool_calls").begin_array().begin_object();
  delta.key("index").integer(static_cast<std::int64_t>(sent_));
  write_call(delta, head_, call, 0, sent_);
  delta.end_object().end_array().end_object();
  ++sent_;
  return chunk(delta.text(), "");
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
  const std::string_view kept = before_stop(request_, result.text);
  const bool value = !request_.call.response_schema.empty();
  const std::vector<Call> calls = calls_of(request_, kept);
  for (std::size_t i = sent_; i < calls.size(); ++i) {
    events += call_event(calls[i]);
  }
  if (const std::string content = value ? std::string(kept) : plain_content(kept);
      calls.empty() && !content.empty()) {
    JsonWriter delta;
    delta.begin_object().key("content").string(content).end_object();
    events += chunk(delta.text(), "");
  }
  events += chunk("{}", finish_reason(request_, result, !calls.empty()));
  JsonWriter last;
  write_head(last, head_, "chat.completion.chunk");
  last.key("choices").begin_array().end_array();
  if (request_.include_usage) {
    write_usage(last, result);
  }
  write_extension(last, request_, result, calls_of(request_, result.text), times, tokenizer);
  last.end_object();
  return events + event_text(last.text()) + "data: [DONE]\n\n";
}

}  // namespace needle
