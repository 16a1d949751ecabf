// The shape of the network, shared by training and inference: what a checkpoint and a weights file
// both carry. Specification, section 1.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "needle/core/enum_names.h"
#include "needle/core/json.h"

namespace needle {

enum class Activation { kDrelu, kSwiglu, kGeglu };
inline constexpr EnumNames<Activation, 3> kActivationNames{{{{Activation::kDrelu, "drelu"},
                                                             {Activation::kSwiglu, "swiglu"},
                                                             {Activation::kGeglu, "geglu"}}}};
template <>
struct EnumTable<Activation> {
  static constexpr const auto& value = kActivationNames;
};

// Defaults: the released model (26.3 M parameters).
struct ModelConfig {
  std::int64_t vocab_size = 8192;
  std::int64_t d_model = 512;
  std::int64_t num_heads = 8;
  std::int64_t num_kv_heads = 4;
  std::int64_t num_encoder_layers = 12;
  std::int64_t num_decoder_layers = 8;
  std::int64_t d_ff = 2048;
  Activation activation = Activation::kDrelu;
  bool no_feedforward = true;
  std::int64_t max_seq_len = 1024;
  double rope_theta = 10000.0;
  std::int64_t contrastive_dim = 128;
  std::int64_t pad_token_id = 0;

  std::int64_t head_dim() const { return d_model / num_heads; }      // D
  std::int64_t kv_dim() const { return num_kv_heads * head_dim(); }  // K*D
  std::int64_t parameter_count() const;

  // Throws ConfigError naming `where` and the field: sizes at least 1, heads divide d_model, kv
  // heads divide heads, even head size, d_model a multiple of 4 (contrastive hidden size).
  void validate(std::string_view where) const;
  bool operator==(const ModelConfig&) const = default;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("vocab_size", self.vocab_size, "Pieces in the vocabulary, special ones included");
    visit("d_model", self.d_model, "Width of the residual stream");
    visit("num_heads", self.num_heads, "Query heads; the head size is d_model / num_heads");
    visit("num_kv_heads", self.num_kv_heads, "Key/value heads (grouped-query attention)");
    visit("num_encoder_layers", self.num_encoder_layers, "Encoder blocks");
    visit("num_decoder_layers", self.num_decoder_layers, "Decoder blocks");
    visit("d_ff", self.d_ff, "Hidden width of the feed-forward ablation");
    visit("activation", self.activation, "Feed-forward ablation: drelu, swiglu or geglu");
    visit("no_feedforward", self.no_feedforward, "True: attention only, as the released model");
    visit("max_seq_len", self.max_seq_len,
          "Longest sequence used in training; RoPE is not limited by it");
    visit("rope_theta", self.rope_theta, "Base of the rotary angles");
    visit("contrastive_dim", self.contrastive_dim, "Size of a retrieval embedding");
    visit("pad_token_id", self.pad_token_id, "Id of padding");
  }
};

}  // namespace needle
