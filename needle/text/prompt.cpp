#include "needle/text/prompt.h"

#include <algorithm>

#include "needle/core/error.h"

namespace needle {
namespace {

// How many of `size` tokens are kept of at most `limit`.
std::int64_t kept_of(std::int64_t size, std::int64_t limit) {
  return std::min(size, std::max<std::int64_t>(limit, 0));
}

}  // namespace

void PromptConfig::validate(std::string_view where) const {
  // One query token, <tools> and one tools token; eos, <tool_call> and eos around an answer of one
  // token.
  constexpr std::int64_t kLeastEncoder = 3;
  constexpr std::int64_t kLeastDecoder = 4;
  if (max_enc_len < kLeastEncoder) {
    throw ConfigError(
        format("{}: max_enc_len = {} must be at least {}", where, max_enc_len, kLeastEncoder));
  }
  if (max_dec_len < kLeastDecoder) {
    throw ConfigError(
        format("{}: max_dec_len = {} must be at least {}", where, max_dec_len, kLeastDecoder));
  }
}

EncoderPrompt encode_prompt(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view query, std::string_view tools_json,
                            SpecialText special) {
  return encode_prompt(tokenizer, config, query, tokenizer.encode(tools_json, special), special);
}

EncoderPrompt encode_prompt(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view query, std::span<const TokenId> tools,
                            SpecialText special) {
  EncoderPrompt prompt;
  prompt.ids = tokenizer.encode(query, special);
  const std::int64_t query_kept = kept_of(std::ssize(prompt.ids), config.max_enc_len - 2);
  const std::int64_t tools_kept = kept_of(std::ssize(tools), config.max_enc_len - query_kept - 1);
  prompt.cut_query_tokens = std::ssize(prompt.ids) - query_kept;
  prompt.cut_tools_tokens = std::ssize(tools) - tools_kept;
  prompt.ids.resize(static_cast<std::size_t>(query_kept));
  prompt.ids.reserve(static_cast<std::size_t>(query_kept + 1 + tools_kept));
  prompt.ids.push_back(kToolsId);
  prompt.ids.insert(prompt.ids.end(), tools.begin(), tools.begin() + tools_kept);
  return prompt;
}

EncodedAnswer encode_answer(const Tokenizer& tokenizer, const PromptConfig& config,
                            std::string_view answer, SpecialText special) {
  EncodedAnswer encoded;
  encoded.spans = tokenizer.encode_spans(answer, special);
  encoded.target.reserve(encoded.spans.size() + 2);
  encoded.target.push_back(kToolCallId);
  for (const TokenSpan& span : encoded.spans) {
    encoded.target.push_back(span.id);
  }
  encoded.decoder_in.reserve(encoded.target.size() + 1);
  encoded.decoder_in.push_back(kEosId);
  encoded.decoder_in.insert(encoded.decoder_in.end(), encoded.target.begin(), encoded.target.end());
  encoded.target.push_back(kEosId);
  encoded.fits = static_cast<std::int64_t>(encoded.spans.size()) + 3 <= config.max_dec_len;
  return encoded;
}

}  // namespace needle
