#include "needle/runtime/request.h"

#include <algorithm>

namespace needle::runtime {
namespace {

AlignedBuffer<float> floats(std::int64_t count) {
  return AlignedBuffer<float>(static_cast<std::size_t>(count));
}

}  // namespace

Request::Request(const Kernels& kernels, const Model& model, std::int64_t prompt_count,
                 std::int64_t token_count)
    : Request(model.config, uses_int_attention(kernels, model, prompt_count), prompt_count,
              token_count) {}

Request::Request(const ModelConfig& config, bool in_int8, std::int64_t prompt_count,
                 std::int64_t token_count)
    : max_tokens(token_count),
      prompt_tokens(prompt_count),
      int_attention(in_int8),
      rope(config, token_count),
      x(floats(config.d_model)),
      normed(floats(config.d_model)),
      q(floats(config.d_model)),
      k(floats(config.kv_dim())),
      v(floats(config.kv_dim())),
      attended(floats(config.d_model)),
      update(floats(config.d_model)),
      hidden(floats(config.no_feedforward ? 0 : config.d_ff)),
      up(floats(config.no_feedforward ? 0 : config.d_ff)),
      scores(floats(std::max(
          config.num_heads / config.num_kv_heads * padded(std::max(prompt_tokens, max_tokens)),
          attention_scratch(prompt_tokens)))),
      logits(floats(padded(config.vocab_size))),
      codes(1, std::max(config.d_model, config.no_feedforward ? 0 : config.d_ff)) {
  for (std::int64_t layer = 0; layer < config.num_decoder_layers; ++layer) {
    self.emplace_back(config, max_tokens);
    if (int_attention) {
      cross_int.emplace_back(config, prompt_tokens);
    } else {
      cross.emplace_back(config, prompt_tokens);
    }
  }
}

}  // namespace needle::runtime
