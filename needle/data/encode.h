// Examples to token ids: what training sees of a row (specification, section 4).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/core/thread_pool.h"
#include "needle/data/example.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

// How rows become ids, besides PromptConfig. The defaults are ours; reference() reproduces the
// reference.
struct EncodeConfig {
  bool shuffle_tools = true;
  bool shuffle_properties = true;
  bool snake_case_names = true;
  bool special_in_text = false;
  bool reference_classes = false;
  std::int64_t max_tool_len = 256;

  static EncodeConfig reference() {
    return {.shuffle_properties = false,
            .snake_case_names = false,
            .special_in_text = true,
            .reference_classes = true};
  }

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("shuffle_tools", self.shuffle_tools,
          "Shuffle tools, parameters and keys by row number, so that their order teaches nothing");
    visit("shuffle_properties", self.shuffle_properties,
          "Shuffle the properties of JSON Schema parameters too (the reference does not)");
    visit(
        "snake_case_names", self.snake_case_names,
        "Write tool names in snake_case as serving does (the reference trains on names as given)");
    visit("special_in_text", self.special_in_text,
          "Let <tools> and <tool_call> inside texts become special ids (as the reference does)");
    visit("reference_classes", self.reference_classes,
          "Token classes with the reference's flaws instead of exact ones");
    visit("max_tool_len", self.max_tool_len, "Longest tool in tokens for retrieval pairs");
  }
};

// What happened to the rows: nothing is cut or left out without being counted.
struct EncodeReport {
  std::int64_t rows = 0;
  std::int64_t kept = 0;
  std::int64_t dropped_too_long = 0;  // the answer does not fit into max_dec_len
  std::int64_t skipped_empty = 0;     // pretraining rows without query or answer
  std::int64_t answers_not_json = 0;  // kept, as plain text of class 0
  std::int64_t cut_queries = 0;       // rows
  std::int64_t cut_query_tokens = 0;
  std::int64_t cut_tools = 0;  // rows whose tools (or seed text) were cut
  std::int64_t cut_tools_tokens = 0;
  std::int64_t cut_answers = 0;  // pretraining rows
  std::int64_t cut_answer_tokens = 0;
  std::int64_t source_tokens = 0;
  std::int64_t target_tokens = 0;
  std::vector<std::int64_t> dropped_rows{};  // indices; the first 1000

  void merge(const EncodeReport& other);
  std::string text() const;  // one line: "27 rows: 21 kept, 6 dropped (answer over 48 tokens), ..."

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("rows", self.rows, "Rows read");
    visit("kept", self.kept, "Rows encoded");
    visit("dropped_too_long", self.dropped_too_long,
          "Rows left out: answer longer than max_dec_len");
    visit("skipped_empty", self.skipped_empty, "Pretraining rows left out: no query or no answer");
    visit("answers_not_json", self.answers_not_json,
          "Answers that are not JSON, kept as plain text");
    visit("cut_queries", self.cut_queries, "Rows whose query was cut");
    visit("cut_query_tokens", self.cut_query_tokens, "Tokens cut from queries");
    visit("cut_tools", self.cut_tools, "Rows whose tools or seed text were cut");
    visit("cut_tools_tokens", self.cut_tools_tokens, "Tokens cut from tools or seed texts");
    visit("cut_answers", self.cut_answers, "Pretraining rows whose answer was cut");
    visit("cut_answer_tokens", self.cut_answer_tokens, "Tokens cut from pretraining answers");
    visit("source_tokens", self.source_tokens, "Encoder tokens");
    visit("target_tokens", self.target_tokens, "Decoder tokens");
    visit("dropped_rows", self.dropped_rows, "Indices of the first 1000 rows left out for length");
  }
};

// The JSON texts of a row as the model sees them. `row` seeds the shuffle.
struct CallTexts {
  std::string tools{};
  std::string answer{};
  std::vector<std::string>
      tool_texts;              // each tool alone; empty if `tools` is not a JSON array of objects
  std::vector<bool> called{};  // is a tool of that name called in the answer
  bool answer_is_json = true;
};
CallTexts call_texts(const CallExample& example, std::int64_t row, JsonEscapes escapes,
                     const EncodeConfig& config);

struct EncodedExamples {
  std::vector<EncodedExample> examples;  // the kept ones, in order; `row` counts from `first_row`
  EncodeReport report{};
};

// Runs on the pool's threads; the result does not depend on their number. `first_row` is the row
// number of examples[0]: rows are shuffled by their number in the whole input.
EncodedExamples encode_call_examples(std::span<const CallExample> examples,
                                     const Tokenizer& tokenizer, const PromptConfig& prompt,
                                     const EncodeConfig& config, ThreadPool& pool,
                                     std::int64_t first_row = 0);
EncodedExamples encode_pretrain_examples(std::span<const PretrainExample> examples,
                                         const Tokenizer& tokenizer, const PromptConfig& prompt,
                                         const EncodeConfig& config, ThreadPool& pool,
                                         std::int64_t first_row = 0);

}  // namespace needle
