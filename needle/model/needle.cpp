#include "needle/model/needle.h"

#include <optional>

#include "needle/core/error.h"

namespace needle {

ModelMasks make_masks(const ModelInput& input, std::int64_t pad_id) {
  const auto causal = causal_mask(input.decoder_in.size(1), input.decoder_in.device());
  if (input.source_segments.defined()) {
    NEEDLE_CHECK(input.decoder_segments.defined(), "packed rows need both sides' segments");
    return {
        .source = segment_mask(input.source_segments, input.source_segments),
        .decoder = segment_mask(input.decoder_segments, input.decoder_segments).logical_and(causal),
        .cross = segment_mask(input.decoder_segments, input.source_segments)};
  }
  const auto source = padding_mask(input.source, pad_id);
  const auto decoder = input.mask_decoder_padding
                           ? padding_mask(input.decoder_in, pad_id).logical_and(causal)
                           : causal;
  return {.source = source, .decoder = decoder, .cross = source};
}

namespace {

struct LayerMasks {
  AttentionMask source;
  AttentionMask decoder;
  AttentionMask cross;
};

// Nothing if the rows cannot be told as ranges.
std::optional<LayerMasks> range_masks(const ModelInput& input, std::int64_t pad_id,
                                      AttentionKernel kernel, const LayerOptions& layers) {
  if (!input.source.device().is_cpu()) {
    return std::nullopt;
  }
  const auto length = input.decoder_in.size(1);
  std::optional<AttentionRanges> source, decoder, cross;
  if (input.source_segments.defined()) {
    NEEDLE_CHECK(input.decoder_segments.defined(), "packed rows need both sides' segments");
    source = segment_ranges(input.source_segments, input.source_segments, false);
    decoder = segment_ranges(input.decoder_segments, input.decoder_segments, true);
    cross = segment_ranges(input.decoder_segments, input.source_segments, false);
  } else {
    // No token is id -1: without the padding mask every position of the answer counts.
    source = padding_ranges(input.source.size(1), input.source, pad_id, false);
    decoder =
        padding_ranges(length, input.decoder_in, input.mask_decoder_padding ? pad_id : -1, true);
    cross = padding_ranges(length, input.source, pad_id, false);
  }
  if (!source || !decoder || !cross) {
    return std::nullopt;
  }
  return LayerMasks{AttentionMask(*source, kernel, layers), AttentionMask(*decoder, kernel, layers),
                    AttentionMask(*cross, kernel, layers)};
}

LayerMasks segment_masks(const ModelInput& input) {
  const auto& source = input.source_segments;
  const auto& decoder = input.decoder_segments;
  const std::int64_t most = input.most_segments;
  return {AttentionMask(segment_offsets(source, source, most, /*causal=*/false)),
          AttentionMask(segment_offsets(decoder, decoder, most, /*causal=*/true)),
          AttentionMask(segment_offsets(decoder, source, most, /*causal=*/false))};
}

}  // namespace

NeedleImpl::NeedleImpl(const ModelConfig& config, double dropout_rate)
    : config_((config.validate("model"), config)), dropout_rate_(dropout_rate) {
  embedding = register_module("embedding", TiedEmbedding(config.vocab_size, config.d_model));
  encoder = register_module("encoder", Encoder(config, dropout_rate));
  decoder = register_module("decoder", Decoder(config, dropout_rate));
  contrastive_head = register_module("contrastive_head", ContrastiveHead(config));
  log_temp = add_parameter("log_temp", log_temp, torch::zeros({}));
}

torch::Tensor NeedleImpl::forward(const ModelInput& input) { return logits(hidden(input)); }

torch::Tensor NeedleImpl::encode(const torch::Tensor& source, const torch::Tensor& source_mask) {
  return encoder(embedding(source, compute_dtype_), AttentionMask(source_mask, attention_kernel_));
}

torch::Tensor NeedleImpl::decode(const torch::Tensor& decoder_in, const torch::Tensor& encoder_out,
                                 const torch::Tensor& self_mask, const torch::Tensor& cross_mask) {
  return decoder(embedding(decoder_in, compute_dtype_), encoder_out,
                 AttentionMask(self_mask, attention_kernel_),
                 AttentionMask(cross_mask, attention_kernel_));
}

torch::Tensor NeedleImpl::hidden(const ModelInput& input) {
  if (takes_ranges(attention_kernel_)) {
    if (const auto masks =
            range_masks(input, config_.pad_token_id, layer_kernel(), layer_options())) {
      const auto encoder_out = encoder(embedding(input.source, stream_dtype()), masks->source);
      return decoder(embedding(input.decoder_in, stream_dtype()), encoder_out, masks->decoder,
                     masks->cross);
    }
  }
  if (attention_kernel_ == AttentionKernel::kSegments && input.most_segments > 0) {
    const auto source = embedding(input.source, compute_dtype_);
    if (has_segment_attention(source)) {
      const LayerMasks masks = segment_masks(input);
      return decoder(embedding(input.decoder_in, compute_dtype_), encoder(source, masks.source),
                     masks.decoder, masks.cross);
    }
  }
  const ModelMasks masks = make_masks(input, config_.pad_token_id);
  const auto encoder_out = encode(input.source, masks.source);  // [B, T, d]
  return decode(input.decoder_in, encoder_out, masks.decoder, masks.cross);
}

AttentionKernel NeedleImpl::layer_kernel() const {
  const bool fused =
      attention_kernel_ == AttentionKernel::kLayers && (dropout_rate_ == 0.0 || !is_training());
  return fused ? AttentionKernel::kLayers : AttentionKernel::kRanges;
}

torch::ScalarType NeedleImpl::stream_dtype() const {
  return layer_kernel() == AttentionKernel::kLayers ? torch::kFloat32 : compute_dtype_;
}

LayerOptions NeedleImpl::layer_options() const {
  return {.recompute = activation_checkpointing_, .factors = compute_dtype_};
}

torch::ScalarType NeedleImpl::factor_dtype() const {
  return layer_kernel() == AttentionKernel::kLayers ? compute_dtype_ : torch::kFloat32;
}

torch::Tensor NeedleImpl::logits(const torch::Tensor& hidden_states) {
  return embedding->logits(hidden_states);
}

torch::Tensor NeedleImpl::embed(const torch::Tensor& tokens) {
  const auto ranges = takes_ranges(attention_kernel_) && tokens.device().is_cpu()
                          ? padding_ranges(tokens.size(1), tokens, config_.pad_token_id, false)
                          : std::nullopt;
  const auto encoder_out =
      ranges ? encoder(embedding(tokens, stream_dtype()),
                       AttentionMask(*ranges, layer_kernel(), layer_options()))
             : encode(tokens, padding_mask(tokens, config_.pad_token_id));  // [B, T, d]
  return contrastive_head(encoder_out, tokens.ne(config_.pad_token_id));
}

void NeedleImpl::set_fake_quant(FakeQuant kernels, FakeQuant embedding_mode) {
  kernel_quant_ = kernels;
  embedding->weight_path.set_mode(embedding_mode);
  for (const auto& module : modules()) {
    if (auto* linear = module->as<KernelLinear>()) {
      linear->weight_path.set_mode(kernels);
    }
  }
}

void NeedleImpl::set_dropout_rate(double rate) {
  NEEDLE_CHECK(rate >= 0.0 && rate < 1.0, "dropout rate {} is not in [0, 1)", rate);
  dropout_rate_ = rate;
  for (const auto& module : modules()) {
    if (auto* dropout = module->as<torch::nn::Dropout>()) {
      dropout->options.p(rate);
    }
  }
}

std::vector<std::string> NeedleImpl::kernel_names() const {
  std::vector<std::string> names;
  for (const auto& item : named_parameters()) {
    if (item.value().dim() == 2 &&
        item.value().unsafeGetTensorImpl() != embedding->weight.unsafeGetTensorImpl()) {
      names.push_back(item.key());
    }
  }
  return names;
}

}  // namespace needle
