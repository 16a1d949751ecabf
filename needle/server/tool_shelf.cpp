#include "needle/server/tool_shelf.h"

#include <span>
#include <utility>

#include "needle/calls/tool.h"
#include "needle/calls/tool_name.h"
#include "needle/core/error.h"
#include "needle/decode/retrieve.h"
#include "needle/text/prompt.h"

namespace needle {

std::int64_t prompt_overflow(const ServedModel& served, std::string_view query,
                             const std::string& tools_json) {
  const PromptConfig& config = served.model.prompt_config();
  if (query.size() + tools_json.size() < static_cast<std::size_t>(config.max_enc_len) - 2) {
    return 0;  // a token has at least a byte
  }
  const NormalizedTools tools =
      normalize_tool_names(tools_json, NameStyle::kUnique, config.json_escapes);
  const EncoderPrompt prompt =
      encode_prompt(served.model.tokenizer(), config, query, tools.tools_json);
  return prompt.cut_query_tokens + prompt.cut_tools_tokens;
}

void ToolShelf::add(const std::string& server, const JsonValue& tools) {
  for (const Tool& tool : parse_tools(tools)) {
    std::string name = tool.name;
    if (origins_.contains(name)) {
      name = server + "_" + name;
    }
    for (int i = 2; origins_.contains(name); ++i) {
      name = format("{}_{}_{}", server, tool.name, i);
    }
    origins_[name] = {.server = server, .tool = tool.name};
    JsonValue kept = JsonValue::object({{"name", JsonValue::string(name)}});
    for (const std::string_view key : {"description", "parameters"}) {
      if (const JsonValue* value = tool.declared.find(key)) {
        kept.set(key, *value);
      }
    }
    tools_.items().push_back(std::move(kept));
  }
}

const ToolShelf::Origin* ToolShelf::origin(std::string_view name) const {
  const auto found = origins_.find(name);
  return found == origins_.end() ? nullptr : &found->second;
}

std::vector<std::vector<float>> ToolShelf::embeddings(const ServedModel& served,
                                                      const std::vector<std::string>& texts) const {
  std::vector<std::vector<float>> result;
  for (const std::string& text : texts) {
    const std::string key = served.fingerprint + text;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = embeddings_.find(key); found != embeddings_.end()) {
        result.push_back(found->second);
        continue;
      }
    }
    result.push_back(ToolIndex(served.model.engine(), served.model.tokenizer(), std::span(&text, 1),
                               {.json_escapes = served.model.prompt_config().json_escapes})
                         .embeddings()[0]);
    const std::lock_guard lock(mutex_);
    if (embeddings_.size() >=
        4 * origins_.size()) {  // models come and go, and so do requests' tools
      embeddings_.clear();
    }
    embeddings_.emplace(key, result.back());
  }
  return result;
}

ToolShelf::Choice ToolShelf::fitting(const ServedModel& served, std::string_view query,
                                     const std::string& tools_json) const {
  if (prompt_overflow(served, query, tools_json) == 0) {
    return {.tools_json = tools_json};
  }
  const auto escapes = served.model.prompt_config().json_escapes;
  const std::vector<std::string> texts = tool_texts(tools_json, escapes);
  const ToolIndex index(served.model.engine(), served.model.tokenizer(), embeddings(served, texts),
                        {.json_escapes = escapes});
  const auto& tokenizer = served.model.tokenizer();
  auto room = served.model.prompt_config().max_enc_len - std::ssize(tokenizer.encode(query)) - 4;
  std::vector<std::size_t> chosen;
  for (const RankedTool& tool : index.rank(query, texts.size())) {
    room -= std::ssize(tokenizer.encode(texts[tool.index])) + 1;
    if (room < 0) {
      break;
    }
    chosen.push_back(tool.index);
  }
  const auto written = [&] {
    std::string list = "[";
    for (const std::size_t i : chosen) {
      list += (list.size() == 1 ? "" : ",") + texts[i];
    }
    return list + "]";
  };
  // Names in snake_case may have more tokens than were counted.
  while (!chosen.empty() && prompt_overflow(served, query, written()) > 0) {
    chosen.pop_back();
  }
  return {.tools_json = written(), .left_out = std::ssize(texts) - std::ssize(chosen)};
}

}  // namespace needle
