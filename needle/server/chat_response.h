// What a model answered, as a chat completion: whole or as server-sent events.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/call.h"
#include "needle/calls/json_value.h"
#include "needle/calls/tool_name.h"
#include "needle/decode/generate.h"
#include "needle/server/chat_request.h"
#include "needle/text/tokenizer.h"

namespace needle {

// Finds the elements of a JSON array of objects in text that comes piece by piece.
class ElementScanner {
 public:
  // The elements that this piece completes, as written.
  std::vector<std::string> add(std::string_view piece);

 private:
  std::string element_;
  int depth_ = 0;  // of brackets and braces
  bool in_string_ = false;
  bool escaped_ = false;
};

// The complete calls at the start of an answer; elements that are no call end the list.
std::vector<Call> complete_calls(std::string_view text);

// Bytes of `text` before the first of the stop texts; its size if none stands in it.
std::size_t stop_position(std::string_view text, const std::vector<std::string>& stop);

struct CompletionHead {
  std::string id;            // "chatcmpl-..."
  std::string model;         // as listed by /v1/models
  std::int64_t created = 0;  // Unix time in seconds
  std::string fingerprint;   // of model and program
};

struct CompletionTimes {
  double queue_ms = 0;
  double model_ms = 0;  // the whole call: grammar, prompt, model
};

// The reply without stream. `tokenizer` may be nullptr where no model was asked.
std::string completion_text(const CompletionHead& head, const ChatRequest& request,
                            const CallResult& result, const CompletionTimes& times,
                            const Tokenizer* tokenizer);

// One request's events: a call is sent as soon as it is complete, with the tools' own names.
class CompletionStream {
 public:
  CompletionStream(CompletionHead head, const ChatRequest& request);

  std::string begin() const;               // the role
  std::string add(std::string_view text);  // events that this text gives rise to, maybe none
  std::string finish(const CallResult& result, const CompletionTimes& times,
                     const Tokenizer* tokenizer);  // the rest, the reason, usage, [DONE]

 private:
  std::string chunk(std::string_view delta, std::string_view reason) const;
  std::string call_event(const Call& call);

  CompletionHead head_;
  const ChatRequest& request_;
  NormalizedTools names_;
  ElementScanner scanner_;
  std::size_t sent_ = 0;  // calls
};

// "data: ...\n\n"
std::string event(const JsonValue& value);

}  // namespace needle
