#include "needle/train/flops.h"

#include <algorithm>
#include <map>
#include <utility>

namespace needle {
namespace {

struct Widths {
  double d, q, kv, ff;
};

Widths widths_of(const ModelConfig& config) {
  const auto head = static_cast<double>(config.head_dim());
  return {.d = static_cast<double>(config.d_model),
          .q = head * static_cast<double>(config.num_heads),
          .kv = head * static_cast<double>(config.num_kv_heads),
          .ff = config.no_feedforward ? 0.0 : static_cast<double>(config.d_ff)};
}

double newton_schulz_flops(double a, double b, double steps) {
  const double n = std::min(a, b), m = std::max(a, b);
  return steps * (4.0 * n * n * m + 2.0 * n * n * n);
}

}  // namespace

StepWork work_of(const Batch& batch) {
  const bool packed = !batch.source_segments.empty();
  StepWork work;
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    std::map<std::int32_t, std::pair<double, double>> sides;  // of each segment: source, decoder
    for (std::int64_t i = row * batch.enc_len; i < (row + 1) * batch.enc_len; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int32_t segment = packed ? batch.source_segments[at] : batch.source[at] != kPadId;
      sides[segment].first += segment > 0 ? 1.0 : 0.0;
    }
    for (std::int64_t i = row * batch.dec_len; i < (row + 1) * batch.dec_len; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int32_t segment =
          packed ? batch.decoder_segments[at] : batch.decoder_in[at] != kPadId;
      sides[segment].second += segment > 0 ? 1.0 : 0.0;
    }
    for (const auto& [segment, tokens] : sides) {
      const auto& [source, decoder] = tokens;
      work.enc_tokens += source;
      work.dec_tokens += decoder;
      work.enc_pairs += source * source;
      work.dec_pairs += decoder * decoder;
      work.cross_pairs += source * decoder;
    }
  }
  return work;
}

double model_flops(const ModelConfig& config, const StepWork& work) {
  const Widths w = widths_of(config);
  const double projections = w.d * (2.0 * w.q + 2.0 * w.kv);  // multiplications a token
  const double ff = 3.0 * w.d * w.ff;
  const double encoder = work.enc_tokens * (projections + ff) + 2.0 * w.q * work.enc_pairs;
  const double decoder = work.dec_tokens * (projections + 2.0 * w.d * w.q + ff) +
                         work.enc_tokens * 2.0 * w.d * w.kv +
                         2.0 * w.q * (work.dec_pairs + work.cross_pairs);
  const double logits = work.dec_tokens * w.d * static_cast<double>(config.vocab_size);
  const double forward = encoder * static_cast<double>(config.num_encoder_layers) +
                         decoder * static_cast<double>(config.num_decoder_layers) + logits;
  return 2.0 * 3.0 * forward;
}

double muon_flops(const ModelConfig& config, std::int64_t newton_schulz_steps) {
  const Widths w = widths_of(config);
  const auto steps = static_cast<double>(newton_schulz_steps);
  const double attention =
      2.0 * newton_schulz_flops(w.q, w.d, steps) + 2.0 * newton_schulz_flops(w.kv, w.d, steps);
  const double ff = 3.0 * newton_schulz_flops(w.ff, w.d, steps);
  return (attention + ff) * static_cast<double>(config.num_encoder_layers) +
         (2.0 * attention + ff) * static_cast<double>(config.num_decoder_layers);
}

}  // namespace needle
