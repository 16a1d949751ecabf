#include "needle/quant/model_config.h"

#include <cmath>

#include "needle/core/error.h"

namespace needle {
namespace {

// Upper limits only keep the arithmetic on an untrusted config from overflowing: far above any real
// model.
struct SizeLimit {
  std::string_view field;
  std::int64_t value;
  std::int64_t least;
  std::int64_t most;
};

void check_divides(std::string_view where, std::string_view divisor_name, std::int64_t divisor,
                   std::string_view name, std::int64_t value, std::string_view advice) {
  if (value % divisor != 0) {
    throw ConfigError(format("{}: {} = {} does not divide {} = {}; {}", where, divisor_name,
                             divisor, name, value, advice));
  }
}

}  // namespace

std::int64_t ModelConfig::parameter_count() const {
  const std::int64_t d = d_model;
  const std::int64_t attention =
      2 * d * d + 2 * d * kv_dim() + 2 * head_dim();       // q, out; k, v; q_norm, k_norm
  const std::int64_t gated_attention = attention + d + 1;  // + norm and gate
  const std::int64_t gated_feed_forward = no_feedforward ? 0 : 3 * d * d_ff + d + 1;
  const std::int64_t encoder = num_encoder_layers * (gated_attention + gated_feed_forward) + d;
  const std::int64_t decoder = num_decoder_layers * (2 * gated_attention + gated_feed_forward) + d;
  const std::int64_t hidden = d / 4;
  const std::int64_t contrastive =
      d * hidden + hidden + hidden * contrastive_dim + 1;  // + log_temp
  return vocab_size * d + encoder + decoder + contrastive;
}

void ModelConfig::validate(std::string_view where) const {
  constexpr std::int64_t kMaxWidth = 1 << 16;
  constexpr std::int64_t kMaxLayers = 1 << 12;
  constexpr std::int64_t kMaxLength = 1 << 24;
  const SizeLimit limits[] = {
      {"vocab_size", vocab_size, 1, kMaxLength},
      {"d_model", d_model, 4, kMaxWidth},
      {"num_heads", num_heads, 1, kMaxWidth},
      {"num_kv_heads", num_kv_heads, 1, kMaxWidth},
      {"num_encoder_layers", num_encoder_layers, 1, kMaxLayers},
      {"num_decoder_layers", num_decoder_layers, 1, kMaxLayers},
      {"d_ff", d_ff, 1, 1 << 20},
      {"max_seq_len", max_seq_len, 1, kMaxLength},
      {"contrastive_dim", contrastive_dim, 1, kMaxWidth},
  };
  for (const SizeLimit& limit : limits) {
    if (limit.value < limit.least || limit.value > limit.most) {
      throw ConfigError(format("{}: {} = {} is outside {} to {}", where, limit.field, limit.value,
                               limit.least, limit.most));
    }
  }
  check_divides(where, "num_heads", num_heads, "d_model", d_model, "choose a divisor of d_model");
  check_divides(where, "num_kv_heads", num_kv_heads, "num_heads", num_heads,
                "choose a divisor of num_heads");
  if (head_dim() % 2 != 0) {
    throw ConfigError(format(
        "{}: the head size d_model / num_heads = {} / {} = {} must be even: RoPE turns its two "
        "halves",
        where, d_model, num_heads, head_dim()));
  }
  if (d_model % 4 != 0) {
    throw ConfigError(
        format("{}: d_model = {} must be a multiple of 4: the contrastive head's hidden size is a "
               "quarter of it",
               where, d_model));
  }
  if (!(rope_theta > 0.0) || !std::isfinite(rope_theta)) {
    throw ConfigError(format("{}: rope_theta = {} must be positive and finite", where, rope_theta));
  }
  if (pad_token_id < 0 || pad_token_id >= vocab_size) {
    throw ConfigError(format("{}: pad_token_id = {} is outside the vocabulary of {} pieces", where,
                             pad_token_id, vocab_size));
  }
}

}  // namespace needle
