#include "needle/runtime/request.h"

namespace needle::runtime {
Request::Request(const Kernels& kernels, const Model& model, std::int64_t prompt_count,
                 std::int64_t token_count)
    : max_tokens(token_count),
      prompt_tokens(prompt_count),
      int_attention(uses_int_attention(kernels, model, prompt_count)),
      rope(model.rope_table(token_count)) {
  for (std::int64_t layer = 0; layer < model.config.num_decoder_layers; ++layer) {
    self.emplace_back(model.config, max_tokens);
    if (int_attention) {
      cross_int.emplace_back(model.config, prompt_tokens);
    } else {
      cross.emplace_back(model.config, prompt_tokens);
    }
  }
}

}  // namespace needle::runtime
