#include "needle/model/decoder.h"

#include "needle/model/fused_layer.h"

namespace needle {
DecoderBlockImpl::DecoderBlockImpl(const ModelConfig& config, double dropout_rate)
    : self_attn(register_module("self_attn", GatedSelfAttention(config, dropout_rate))),
      cross_attn(register_module("cross_attn", GatedCrossAttention(config, dropout_rate))) {
  if (!config.no_feedforward) {
    ffn = register_module("ffn", GatedFeedForward(config, dropout_rate));
  }
}

torch::Tensor DecoderBlockImpl::forward(const torch::Tensor& x, const torch::Tensor& encoder_out,
                                        const AttentionMask& self_mask,
                                        const AttentionMask& cross_mask, const Rope& rope) {
  return forward(x, cross_attn->attention->keys_values(encoder_out), self_mask, cross_mask, rope);
}

torch::Tensor DecoderBlockImpl::forward(const torch::Tensor& x, const KeyValues& context,
                                        const AttentionMask& self_mask,
                                        const AttentionMask& cross_mask, const Rope& rope) {
  const auto attended = cross_attn(self_attn(x, self_mask, rope), context, cross_mask);
  return ffn.is_empty() ? attended : ffn(attended);
}

torch::Tensor DecoderBlockImpl::step(const torch::Tensor& x, KvCache& self, const KeyValues& cross,
                                     const AttentionMask& cross_mask, const Rope& rope) {
  const auto attended = cross_attn(self_attn->step(x, self, rope), cross, cross_mask);
  return ffn.is_empty() ? attended : ffn(attended);
}

void DecoderState::keep_rows(const torch::Tensor& rows) {
  for (KvCache& cache : self) {
    cache.keep_rows(rows);
  }
  for (KeyValues& kv : cross) {
    kv = {.keys = kv.keys.index_select(0, rows), .values = kv.values.index_select(0, rows)};
  }
  if (cross_allowed.defined()) {
    cross_allowed = cross_allowed.index_select(0, rows);
  }
}

void DecoderState::rewind(std::int64_t to) {
  for (KvCache& cache : self) {
    cache.truncate(to);
  }
  position = to;
}

DecoderImpl::DecoderImpl(const ModelConfig& config, double dropout_rate)
    : layers(register_module("layers", torch::nn::ModuleList())),
      final_norm(register_module("final_norm", ZCRMSNorm(config.d_model))),
      rope_(config.head_dim(), config.rope_theta) {
  for (std::int64_t i = 0; i < config.num_decoder_layers; ++i) {
    layers->push_back(DecoderBlock(config, dropout_rate));
  }
}

torch::Tensor DecoderImpl::forward(const torch::Tensor& x, const torch::Tensor& encoder_out,
                                   const AttentionMask& self_mask,
                                   const AttentionMask& cross_mask) {
  const Rope rope = rope_.first(x.size(1), x.device());
  const bool fused = cross_mask.kernel() == AttentionKernel::kLayers;
  const std::vector<KeyValues> context =
      fused ? fused_cross_keys_values(cross_attentions(), encoder_out, cross_mask.layers().factors)
            : std::vector<KeyValues>();
  auto stream = x;  // [B, L, d]
  for (std::size_t i = 0; i < layers->size(); ++i) {
    auto& block = *layers[i]->as<DecoderBlock>();
    stream = fused ? block.forward(stream, context[i], self_mask, cross_mask, rope)
                   : block.forward(stream, encoder_out, self_mask, cross_mask, rope);
  }
  return fused ? fused_norm(*final_norm, stream) : final_norm(stream);
}

std::vector<Attention> DecoderImpl::cross_attentions() const {
  std::vector<Attention> attentions;
  for (const auto& layer : *layers) {
    attentions.push_back(layer->as<DecoderBlock>()->cross_attn->attention);
  }
  return attentions;
}

DecoderState DecoderImpl::start(const torch::Tensor& encoder_out,
                                const torch::Tensor& cross_allowed) {
  DecoderState state;
  state.self.resize(layers->size());
  for (const auto& layer : *layers) {
    state.cross.push_back(
        layer->as<DecoderBlock>()->cross_attn->attention->keys_values(encoder_out));
  }
  state.cross_allowed = cross_allowed;
  return state;
}

torch::Tensor DecoderImpl::step(const torch::Tensor& x, DecoderState& state) {
  const Rope rope = rope_.first(state.position + 1, x.device()).at(state.position);
  const auto cross_mask =
      state.cross_allowed.defined() ? AttentionMask(state.cross_allowed) : AttentionMask();
  auto stream = x;  // [B, 1, d]
  for (std::size_t i = 0; i < state.self.size(); ++i) {
    stream = layers[i]->as<DecoderBlock>()->step(stream, state.self[i], state.cross[i], cross_mask,
                                                 rope);
  }
  ++state.position;
  return final_norm(stream);
}

}  // namespace needle
