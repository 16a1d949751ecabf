// POST /v1/chat/completions, from JSON to what a model is asked.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/decode/generate.h"
#include "needle/server/limits.h"
#include "needle/server/tool_reader.h"

namespace needle {

struct ChatRequest {
  std::string model;  // "" is the server's first
  CallRequest call;   // query, tools and every setting of the decoder
  // The request's tools that tool_choice leaves; `call` may have fewer, of those that it was given.
  std::shared_ptr<const ReadTools> offered;
  std::vector<std::string> stop;  // the answer ends before the first of them
  std::int64_t choices = 1;       // n
  bool stream = false;
  bool include_usage = false;   // a last chunk with the token counts
  bool answer_nothing = false;  // tool_choice "none": no model is asked
  bool trace = false;
  // Fields that change nothing here: unknown ones, and known ones that a greedy decoder of single
  // turns has no use for. They are listed back to the client.
  std::vector<std::string> ignored;
};

// Throws ApiError 400 for what cannot be honoured: nothing that would change the answer is ignored.
// `seed` is honoured as it is: decoding is deterministic.
ChatRequest parse_chat_request(const JsonValue& body, const ServerLimits& limits,
                               ToolReader& tools);

}  // namespace needle
