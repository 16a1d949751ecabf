#include "needle/runtime/request.h"

namespace needle::runtime {
Request::Request(const Kernels& kernels, const Model& model, std::int64_t prompt_count,
                 std::int64_t token_count)
    : Request(model.config, uses_int_attention(kernels, model, prompt_count), prompt_count,
              token_count) {}

Request::Request(const ModelConfig& config, bool in_int8, std::int64_t prompt_count,
                 std::int64_t token_count)
    : max_tokens(token_count),
      prompt_tokens(prompt_count),
      int_attention(in_int8),
      rope(config, token_count) {
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
