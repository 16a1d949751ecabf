// The weights of a `.needle` file, ready for the kernels: dense matrices as panels of 16 outputs
// with 8-bit codes, everything else as float32.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "needle/quant/weights_file.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/kernels/kernels.h"

namespace needle::runtime {

// y = W x for a matrix [out, in] of the file. 4-bit codes are widened to 8 bits: one load and one
// conversion a weight instead of shifts and masks, for twice the memory.
class Matrix {
 public:
  Matrix() = default;
  explicit Matrix(const MatrixView& stored);

  std::int64_t in() const { return in_; }
  std::int64_t out() const { return out_; }
  Panels panels() const;
  // Row `out` of the matrix times `scale`: an embedding. to: [in].
  void copy_row(std::int64_t row, float scale, std::span<float> to) const noexcept;

 private:
  std::int64_t in_ = 0;
  std::int64_t out_ = 0;
  AlignedBuffer<float> values_;       // either these,
  AlignedBuffer<std::int8_t> codes_;  // or these
  AlignedBuffer<float> scales_;
};

struct AttentionWeights {
  Matrix q_proj, k_proj, v_proj, out_proj;
  std::vector<float> q_norm, k_norm;  // [D], 1 + scale
};

// x + gate * f(norm(x)); the sigmoid is already in the gate, the 1 already in the norm's factor.
struct SubLayer {
  std::vector<float> norm;  // [d]
  float gate = 0;
};
struct AttentionLayer : SubLayer {
  AttentionWeights attention;
};
struct FeedForwardLayer : SubLayer {
  Matrix gate_proj, up_proj, down_proj;
};

struct EncoderLayer {
  AttentionLayer self;
  std::optional<FeedForwardLayer> ffn;
};
struct DecoderLayer {
  AttentionLayer self;
  AttentionLayer cross;
  std::optional<FeedForwardLayer> ffn;
};

// Immutable; safe from several threads. Holds no reference to the file.
struct Model {
  // Throws FormatError as WeightsFile does, and if a scale is not finite.
  static std::shared_ptr<const Model> load(const WeightsFile& file);

  ModelConfig config;
  Matrix embedding;  // [V, d]
  std::vector<EncoderLayer> encoder;
  std::vector<float> encoder_norm;  // [d], 1 + scale
  std::vector<DecoderLayer> decoder;
  std::vector<float> decoder_norm;
  Matrix contrastive_hidden;            // [d/4, d]
  std::vector<float> contrastive_bias;  // [d/4]
  Matrix contrastive_proj;              // [contrastive_dim, d/4]
};

}  // namespace needle::runtime
