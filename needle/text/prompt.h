// Query and tools to encoder ids, answer to decoder ids: the same code trains and serves
// (specification, section 4).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/core/enum_names.h"
#include "needle/text/tokenizer.h"

namespace needle {

inline constexpr EnumNames<JsonEscapes, 2> kJsonEscapesNames{
    {{{JsonEscapes::kAscii, "ascii"}, {JsonEscapes::kUtf8, "utf8"}}}};
template <>
struct EnumTable<JsonEscapes> {
  static constexpr const auto& value = kJsonEscapesNames;
};

// How prompts are written: saved with the model, because a model understands only what it was
// trained on.
struct PromptConfig {
  std::int64_t max_enc_len = 1024;
  std::int64_t max_dec_len = 512;
  JsonEscapes json_escapes = JsonEscapes::kAscii;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("max_enc_len", self.max_enc_len,
          "Longest encoder row in tokens; longer tools are cut and counted");
    visit("max_dec_len", self.max_dec_len,
          "Longest decoder row in tokens; longer examples are dropped and counted");
    visit("json_escapes", self.json_escapes,
          "Non-ASCII text in tools and answers: ascii (\\uXXXX) or utf8");
  }

  // Throws ConfigError naming `where` and the field.
  void validate(std::string_view where) const;
};

struct EncoderPrompt {
  std::vector<TokenId> ids;           // query, <tools>, tools; at most max_enc_len
  std::int64_t cut_query_tokens = 0;  // how many did not fit: never silent
  std::int64_t cut_tools_tokens = 0;
};

// query[: max_enc-2] + [<tools>] + tools[: max_enc - query - 1]. `tools_json` is used as given:
// compact it before.
EncoderPrompt encode_prompt(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view query, std::string_view tools_json,
                            SpecialText special = SpecialText::kPlain);

// The same with tools that were encoded before.
EncoderPrompt encode_prompt(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view query, std::span<const TokenId> tools,
                            SpecialText special = SpecialText::kPlain);

// An answer as the decoder reads and writes it. decoder_in[i] is followed by target[i].
struct EncodedAnswer {
  std::vector<TokenId> decoder_in;  // [eos, <tool_call>] + answer
  std::vector<TokenId> target;      // [<tool_call>] + answer + [eos]
  std::vector<TokenSpan> spans;     // of the answer's tokens, target[1..size-1): bytes of `answer`
  // 2 + answer + 1 tokens are at most max_dec_len: examples that do not fit are dropped and
  // counted.
  bool fits = true;
};

// `answer` is used as given: compact it before. Never cut, see `fits`.
EncodedAnswer encode_answer(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view answer, SpecialText special = SpecialText::kPlain);

}  // namespace needle
