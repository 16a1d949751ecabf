#include "needle/decode/retrieve.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "needle/calls/tool.h"
#include "needle/calls/tool_name.h"
#include "needle/core/error.h"

namespace needle {
namespace {

std::string written_tool(std::string_view tool, const RetrieveOptions& options) {
  JsonParseResult parsed = parse_json_value(tool);
  if (!parsed.value) {
    return std::string(tool);
  }
  const JsonValue* name = parsed.value->find("name");
  if (options.snake_case_names && name != nullptr && name->is_string()) {
    if (std::string snake = to_snake_case(name->as_string()); !snake.empty()) {
      parsed.value->set("name", JsonValue::string(std::move(snake)));
    }
  }
  return write_compact(*parsed.value, options.json_escapes);
}

}  // namespace

std::vector<float> embed_text(const Engine& engine, const Tokenizer& tokenizer,
                              std::string_view text, const RetrieveOptions& options) {
  NEEDLE_CHECK(options.max_tokens > 0, "max_tokens is {}; it must be positive", options.max_tokens);
  std::vector<TokenId> ids = tokenizer.encode(text, options.special);
  ids.resize(std::min(ids.size(), static_cast<std::size_t>(options.max_tokens)));
  return engine.embed(ids);
}

ToolIndex::ToolIndex(const Engine& engine, const Tokenizer& tokenizer,
                     std::span<const std::string> tools, RetrieveOptions options)
    : engine_(engine), tokenizer_(tokenizer), options_(options) {
  embeddings_.reserve(tools.size());
  for (const std::string& tool : tools) {
    embeddings_.push_back(embed_text(engine_, tokenizer_, written_tool(tool, options_), options_));
  }
}

ToolIndex::ToolIndex(const Engine& engine, const Tokenizer& tokenizer,
                     std::vector<std::vector<float>> embeddings, RetrieveOptions options)
    : engine_(engine),
      tokenizer_(tokenizer),
      options_(options),
      embeddings_(std::move(embeddings)) {}

std::vector<RankedTool> ToolIndex::rank(std::string_view query, std::size_t top_k) const {
  const std::vector<float> asked = embed_text(engine_, tokenizer_, query, options_);
  std::vector<RankedTool> ranking(embeddings_.size());
  for (std::size_t i = 0; i < embeddings_.size(); ++i) {
    NEEDLE_CHECK(embeddings_[i].size() == asked.size(), "embeddings of {} and {} numbers",
                 embeddings_[i].size(), asked.size());
    const double dot = std::inner_product(asked.begin(), asked.end(), embeddings_[i].begin(), 0.0);
    ranking[i] = {.index = i, .score = static_cast<float>(dot)};
  }
  std::stable_sort(ranking.begin(), ranking.end(),
                   [](const RankedTool& a, const RankedTool& b) { return a.score > b.score; });
  ranking.resize(std::min(top_k, ranking.size()));
  return ranking;
}

std::vector<std::string> tool_texts(std::string_view tools_json, JsonEscapes escapes) {
  std::vector<std::string> texts;
  for (const Tool& tool : parse_tools_text(tools_json)) {
    texts.push_back(write_compact(tool.declared, escapes));
  }
  return texts;
}

}  // namespace needle
