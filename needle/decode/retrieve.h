// Which of many tools fit a query: contrastive embeddings ranked by cosine (specification, section
// 8).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/decode/engine.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct RetrieveOptions {
  std::int64_t max_tokens = 256;  // of a query or a tool; the rest is cut
  bool snake_case_names = true;   // tool names as training writes them; false: as declared
  JsonEscapes json_escapes = JsonEscapes::kAscii;
  SpecialText special = SpecialText::kPlain;
};

struct RankedTool {
  std::size_t index = 0;  // among the tools as given
  float score = 0;        // cosine
};

// The text is tokenized alone, without <tools>; an empty text embeds like padding. Unit length
// [contrastive_dim].
std::vector<float> embed_text(const Engine& engine, const Tokenizer& tokenizer,
                              std::string_view text, const RetrieveOptions& options = {});

// Tools embedded once, asked many times. Keeps references: engine and tokenizer must outlive it.
// Safe from several threads.
class ToolIndex {
 public:
  // `tools`: one JSON text each, written compactly before it is embedded.
  ToolIndex(const Engine& engine, const Tokenizer& tokenizer, std::span<const std::string> tools,
            RetrieveOptions options = {});

  // With embeddings that an index of the same tools and options had before.
  ToolIndex(const Engine& engine, const Tokenizer& tokenizer,
            std::vector<std::vector<float>> embeddings, RetrieveOptions options = {});

  const std::vector<std::vector<float>>& embeddings() const { return embeddings_; }
  std::size_t size() const { return embeddings_.size(); }
  // Best first, at most `top_k`; equal scores: lower index first.
  std::vector<RankedTool> rank(std::string_view query, std::size_t top_k) const;

 private:
  const Engine& engine_;
  const Tokenizer& tokenizer_;
  RetrieveOptions options_;
  std::vector<std::vector<float>> embeddings_;  // [tools][contrastive_dim]
};

// The tools of a JSON array (any style that parse_tools reads), one compact text each. Throws
// DataError.
std::vector<std::string> tool_texts(std::string_view tools_json,
                                    JsonEscapes escapes = JsonEscapes::kAscii);

}  // namespace needle
