// Files of needle-rs, a Rust runtime of the same network (github.com/Geekgineer/needle-rs, v1):
// `needle.safetensors` and `vocab.txt`. Layout, kernels as [in, out]:
//
//   embedding BF16 [V, d]; encoder_final_norm, decoder_final_norm F32 [d]
//   encoder.N.{norm [d], self_attn_gate [1]}, encoder.N.self_attn.{q_norm, k_norm [D]} F32
//   decoder.N.{self_attn_norm, cross_attn_norm, self_attn_gate, cross_attn_gate},
//   .{self,cross}_attn.… ….{wq, wk, wv, wo} I4 [in / 2, out], a byte holding row 2k in its low
//   half, 2k + 1 in its high one (two's complement); ….wq.scale F32 [groups of 32 rows, out]
//   contrastive_hidden_kernel, contrastive_hidden_bias, contrastive_proj_kernel F32, all or none
//   with feed-forward layers: ….ffn.{gate_proj, up_proj, down_proj}, ….ffn_norm, ….ffn_gate
//   __metadata__: the shape as text; vocab.txt: "piece TAB score" a line
//
// A safetensors reader by the book does not know that type I4 counts two codes as one.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "needle/quant/model_config.h"

namespace needle {

struct NeedleRsModel {
  ModelConfig config;
  std::int64_t max_enc_len = 1024;
  std::int64_t max_dec_len = 512;
  // By checkpoint name, in LibTorch's layout (expected_tensors() of the config). Without a
  // contrastive head its values are zeros; log_temp, which training alone needs, is zero.
  std::map<std::string, std::vector<float>, std::less<>> parameters;
  bool has_contrastive_head = false;
  std::vector<std::pair<std::string, float>> vocabulary;  // piece and score, by id
};

// Kernels pass through the INT4 rule of group_quant.h, the embedding is rounded to bfloat16: what
// needle-rs's own exporter does. Written atomically, one file after the other. Throws Error if a
// parameter is missing or of another size, or a piece can't be a line.
void write_needle_rs(const NeedleRsModel& model, const std::filesystem::path& weights,
                     const std::filesystem::path& vocabulary);

// Throws FileError, or FormatError naming the file and the tensor or line.
NeedleRsModel read_needle_rs(const std::filesystem::path& weights,
                             const std::filesystem::path& vocabulary);

}  // namespace needle
