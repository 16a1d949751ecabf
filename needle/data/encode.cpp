#include "needle/data/encode.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <utility>

#include "needle/calls/json_value.h"
#include "needle/calls/strip.h"
#include "needle/calls/tool_name.h"
#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/data/token_class.h"

namespace needle {
namespace {

constexpr std::size_t kListedRows = 1000;
constexpr std::size_t kRowsPerChunk = 16;  // a row takes about 0.1 ms

// Uniform in [0, last]: 32-bit words masked to the next 2^k - 1, too large ones rejected.
std::uint32_t draw_up_to(std::mt19937& random, std::uint32_t last) {
  std::uint32_t mask = last;
  for (const int shift : {1, 2, 4, 8, 16}) {
    mask |= mask >> shift;
  }
  while (true) {
    const std::uint32_t value = static_cast<std::uint32_t>(random()) & mask;
    if (value <= last) {
      return value;
    }
  }
}

// Fisher-Yates from the last index down; fewer than two items draw nothing.
template <typename T>
void shuffle(std::vector<T>& items, std::mt19937& random) {
  for (std::size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[draw_up_to(random, static_cast<std::uint32_t>(i - 1))]);
  }
}

// Properties of a JSON Schema, with a generator of their own: the other draws stay the reference's.
void shuffle_schema_properties(JsonValue& tool, std::mt19937& random) {
  JsonValue* const parameters = tool.find("parameters");
  JsonValue* const properties = parameters != nullptr ? parameters->find("properties") : nullptr;
  const JsonValue* const type = parameters != nullptr ? parameters->find("type") : nullptr;
  if (properties != nullptr && properties->is_object() && type != nullptr && type->is_string()) {
    shuffle(properties->members(), random);
  }
}

// std::mt19937 is MT19937 with the classic one-word init, and the standard fixes its numbers.
void shuffle_tools(JsonValue::Array& tools, std::int64_t row, const EncodeConfig& config) {
  const auto seed = static_cast<std::uint32_t>(row);
  std::mt19937 random(seed);
  std::mt19937 properties_random(seed ^ 0x70726F70u);
  shuffle(tools, random);
  for (JsonValue& tool : tools) {
    if (!tool.is_object()) {
      continue;
    }
    if (JsonValue* const parameters = tool.find("parameters");
        parameters != nullptr && parameters->is_object()) {
      shuffle(parameters->members(), random);
    }
    if (config.shuffle_properties) {
      shuffle_schema_properties(tool, properties_random);
    }
    shuffle(tool.members(), random);
  }
}

// Calls of an answer: the objects of an array, or a single object.
std::vector<JsonValue*> call_objects(JsonValue& answer) {
  std::vector<JsonValue*> calls;
  if (answer.is_object()) {
    calls.push_back(&answer);
  } else if (answer.is_array()) {
    for (JsonValue& call : answer.items()) {
      if (call.is_object()) {
        calls.push_back(&call);
      }
    }
  }
  return calls;
}

const JsonValue* string_at(const JsonValue& object, std::string_view key) {
  const JsonValue* const value = object.find(key);
  return value != nullptr && value->is_string() ? value : nullptr;
}

// The answer's names follow those of the tools; a name that no tool has follows the rule alone.
void rename_calls(JsonValue& answer, const NormalizedTools& tools) {
  std::map<std::string_view, std::string_view> snake_by_original;
  for (const auto& [snake, original] : tools.original_by_snake) {
    snake_by_original.emplace(original, snake);
  }
  for (JsonValue* const call : call_objects(answer)) {
    const JsonValue* const name = string_at(*call, "name");
    if (name == nullptr) {
      continue;
    }
    const auto known = snake_by_original.find(name->as_string());
    std::string snake = known != snake_by_original.end() ? std::string(known->second)
                                                         : to_snake_case(name->as_string());
    if (!snake.empty()) {
      call->set("name", JsonValue::string(std::move(snake)));
    }
  }
}

void list_tools(const JsonValue& tools, JsonValue& answer, JsonEscapes escapes, CallTexts& texts) {
  std::set<std::string_view> called;
  for (const JsonValue* const call : call_objects(answer)) {
    if (const JsonValue* const name = string_at(*call, "name"); name != nullptr) {
      called.insert(name->as_string());
    }
  }
  for (const JsonValue& tool : tools.items()) {
    if (tool.is_object()) {
      texts.tool_texts.push_back(write_compact(tool, escapes));
      const JsonValue* const name = string_at(tool, "name");
      texts.called.push_back(name != nullptr && called.contains(name->as_string()));
    }
  }
}

template <typename T>
std::int64_t count_of(const T& items) {
  return static_cast<std::int64_t>(items.size());
}

// One row's share of the result: at most one example, and what to count.
struct EncodedRow {
  std::optional<EncodedExample> example;
  EncodeReport report;
};

void count_prompt(const EncoderPrompt& prompt, EncodeReport& report) {
  report.cut_queries += prompt.cut_query_tokens > 0 ? 1 : 0;
  report.cut_query_tokens += prompt.cut_query_tokens;
  report.cut_tools += prompt.cut_tools_tokens > 0 ? 1 : 0;
  report.cut_tools_tokens += prompt.cut_tools_tokens;
}

void keep(EncodedRow& result, EncodedExample example) {
  result.report.kept = 1;
  result.report.source_tokens = count_of(example.source);
  result.report.target_tokens = count_of(example.target);
  result.example = std::move(example);
}

// Encodes rows of one kind with the settings of one run.
struct RowEncoder {
  const Tokenizer& tokenizer;
  const PromptConfig& prompt;
  const EncodeConfig& config;

  SpecialText special() const {
    return config.special_in_text ? SpecialText::kSpecial : SpecialText::kPlain;
  }

  std::vector<TokenId> encode_up_to(std::string_view text, std::int64_t limit) const {
    std::vector<TokenId> ids = tokenizer.encode(text, special());
    ids.resize(std::min(ids.size(), static_cast<std::size_t>(std::max<std::int64_t>(limit, 0))));
    return ids;
  }

  std::vector<TokenClass> answer_classes(const CallTexts& texts,
                                         std::span<const TokenSpan> tokens) const {
    if (!texts.answer_is_json) {
      return std::vector<TokenClass>(tokens.size(), TokenClass::kStructure);
    }
    if (config.reference_classes) {
      return reference_classes(tokenizer, tokens, reference_marks(texts.answer));
    }
    const JsonParseResult answer = parse_json_value(texts.answer);
    return classify_tokens(tokens, mark_answer(*answer.value, prompt.json_escapes).marks);
  }

  EncodedRow operator()(const CallExample& row, std::int64_t number) const {
    EncodedRow result;
    result.report.rows = 1;
    const CallTexts texts = call_texts(row, number, prompt.json_escapes, config);
    EncodedAnswer answer = encode_answer(tokenizer, prompt, texts.answer, special());
    if (!answer.fits) {
      result.report.dropped_too_long = 1;
      result.report.dropped_rows.push_back(number);
      return result;
    }
    result.report.answers_not_json = texts.answer_is_json ? 0 : 1;
    EncoderPrompt encoder = encode_prompt(tokenizer, prompt, row.query, texts.tools, special());
    count_prompt(encoder, result.report);

    EncodedExample example{.row = number, .source = std::move(encoder.ids)};
    example.decoder_in = std::move(answer.decoder_in);
    example.target = std::move(answer.target);
    example.classes = answer_classes(texts, answer.spans);
    example.classes.insert(example.classes.begin(), TokenClass::kStructure);
    example.classes.push_back(TokenClass::kStructure);
    example.query_ids = encode_up_to(row.query, prompt.max_enc_len);
    for (std::size_t i = 0; i < texts.tool_texts.size(); ++i) {
      example.tools.push_back({.called = texts.called[i],
                               .ids = encode_up_to(texts.tool_texts[i], config.max_tool_len)});
    }
    keep(result, std::move(example));
    return result;
  }

  EncodedRow operator()(const PretrainExample& row, std::int64_t number) const {
    EncodedRow result;
    result.report.rows = 1;
    if (strip_edges(row.query).empty() || strip_edges(row.answer).empty()) {
      result.report.skipped_empty = 1;
      return result;
    }
    const bool has_seed = !strip_edges(row.seed_text).empty();
    EncoderPrompt encoder = encode_prompt(tokenizer, prompt, row.query,
                                          has_seed ? row.seed_text : std::string(), special());
    count_prompt(encoder, result.report);

    EncodedExample example{.row = number, .source = std::move(encoder.ids)};
    example.target = tokenizer.encode(row.answer, special());
    const std::int64_t excess = count_of(example.target) - (prompt.max_dec_len - 1);
    if (excess > 0) {  // cut before eos is added, so that the target always ends in eos
      example.target.resize(example.target.size() - static_cast<std::size_t>(excess));
      result.report.cut_answers = 1;
      result.report.cut_answer_tokens = excess;
    }
    example.decoder_in = example.target;
    example.decoder_in.insert(example.decoder_in.begin(), kEosId);
    example.target.push_back(kEosId);
    keep(result, std::move(example));
    return result;
  }
};

template <typename Row>
EncodedExamples encode_rows(std::span<const Row> rows, const RowEncoder& encoder, ThreadPool& pool,
                            std::int64_t first_row) {
  NEEDLE_CHECK(encoder.prompt.max_enc_len >= 3 && encoder.prompt.max_dec_len >= 4,
               "max_enc_len is {}, max_dec_len is {}: at least 3 and 4 hold one token of text",
               encoder.prompt.max_enc_len, encoder.prompt.max_dec_len);
  std::vector<EncodedRow> encoded(rows.size());
  pool.parallel_for(rows.size(), kRowsPerChunk, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      encoded[i] = encoder(rows[i], first_row + static_cast<std::int64_t>(i));
    }
  });
  EncodedExamples result;
  result.examples.reserve(rows.size());
  for (EncodedRow& row : encoded) {
    result.report.merge(row.report);
    if (row.example) {
      result.examples.push_back(*std::move(row.example));
    }
  }
  return result;
}

}  // namespace

void EncodeReport::merge(const EncodeReport& other) {
  rows += other.rows;
  kept += other.kept;
  dropped_too_long += other.dropped_too_long;
  skipped_empty += other.skipped_empty;
  answers_not_json += other.answers_not_json;
  cut_queries += other.cut_queries;
  cut_query_tokens += other.cut_query_tokens;
  cut_tools += other.cut_tools;
  cut_tools_tokens += other.cut_tools_tokens;
  cut_answers += other.cut_answers;
  cut_answer_tokens += other.cut_answer_tokens;
  source_tokens += other.source_tokens;
  target_tokens += other.target_tokens;
  const std::size_t room = kListedRows - std::min(kListedRows, dropped_rows.size());
  const std::size_t taken = std::min(room, other.dropped_rows.size());
  dropped_rows.insert(dropped_rows.end(), other.dropped_rows.begin(),
                      other.dropped_rows.begin() + static_cast<std::ptrdiff_t>(taken));
}

std::string EncodeReport::text() const {
  std::string line = format("{} rows: {} kept", rows, kept);
  const auto add = [&line](std::int64_t count, std::string_view what, std::int64_t tokens = 0) {
    if (count > 0) {
      line += format(", {} {}", count, what);
      line += tokens > 0 ? format(" ({} tokens)", tokens) : "";
    }
  };
  add(dropped_too_long, "dropped (answer too long)");
  add(skipped_empty, "skipped (no query or no answer)");
  add(cut_queries, "queries cut", cut_query_tokens);
  add(cut_tools, "tools or seed texts cut", cut_tools_tokens);
  add(cut_answers, "answers cut", cut_answer_tokens);
  add(answers_not_json, "answers that are not JSON");
  return line + format("; {} encoder and {} decoder tokens", source_tokens, target_tokens);
}

CallTexts call_texts(const CallExample& example, std::int64_t row, JsonEscapes escapes,
                     const EncodeConfig& config) {
  NormalizedTools normalized;
  if (config.snake_case_names) {
    normalized = normalize_tool_names(example.tools, NameStyle::kUnique, escapes);
  } else {
    normalized.tools_json = example.tools;
  }
  CallTexts texts{.tools = normalized.tools_json, .answer = example.answers};
  JsonParseResult answer = parse_json_value(example.answers);
  texts.answer_is_json = answer.value.has_value();
  if (answer.value) {
    if (config.snake_case_names) {
      rename_calls(*answer.value, normalized);
    }
    texts.answer = write_compact(*answer.value, escapes);
  }
  JsonParseResult tools = parse_json_value(normalized.tools_json);
  if (tools.value && tools.value->is_array()) {
    if (config.shuffle_tools) {
      shuffle_tools(tools.value->items(), row, config);
    }
    JsonValue no_call;
    list_tools(*tools.value, answer.value ? *answer.value : no_call, escapes, texts);
  }
  if (tools.value) {
    texts.tools = write_compact(*tools.value, escapes);
  }
  return texts;
}

EncodedExamples encode_call_examples(std::span<const CallExample> examples,
                                     const Tokenizer& tokenizer, const PromptConfig& prompt,
                                     const EncodeConfig& config, ThreadPool& pool,
                                     std::int64_t first_row) {
  return encode_rows(examples, RowEncoder{tokenizer, prompt, config}, pool, first_row);
}

EncodedExamples encode_pretrain_examples(std::span<const PretrainExample> examples,
                                         const Tokenizer& tokenizer, const PromptConfig& prompt,
                                         const EncodeConfig& config, ThreadPool& pool,
                                         std::int64_t first_row) {
  return encode_rows(examples, RowEncoder{tokenizer, prompt, config}, pool, first_row);
}

}  // namespace needle
