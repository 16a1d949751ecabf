// The weights of a `.needle` file, ready for the kernels.
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
#include "needle/runtime/rope_table.h"

namespace needle::runtime {

// How a model computes.
//   float: float32 activations, weights widened to panels of 8-bit codes when the file is loaded.
//     Token for token what LibTorch makes of the same weights; the specification.
//   int8: 4-bit matrices are used in the mapped file as they lie, activations in 8 bits with one
//     scale a row, attention over the prompt in 12 bits. Integer sums are exact: the same bits for
//     any number of threads.
//   int16: as int8, but an activation is two bytes: its code, and the code of what that leaves
//   over.
//   mixed: int8 in the encoder's layers between its first and its last, int16 elsewhere: nearly as
//   near to float as int16, nearly as fast as int8.
enum class Numerics { kFloat, kInt8, kInt16, kMixed };
inline constexpr EnumNames<Numerics, 4> kNumericsNames{{{{Numerics::kFloat, "float"},
                                                         {Numerics::kInt8, "int8"},
                                                         {Numerics::kInt16, "int16"},
                                                         {Numerics::kMixed, "mixed"}}}};

// y = W x for a matrix [out, in] of the file.
class Matrix {
 public:
  Matrix() = default;
  // `stored` must outlive a matrix that uses it as it lies (int4() is true).
  Matrix(const MatrixView& stored, Numerics numerics);

  std::int64_t in() const { return in_; }
  std::int64_t out() const { return out_; }
  bool is_int4() const { return int4_.codes != nullptr; }
  const Int4Matrix& int4() const { return int4_; }
  Panels panels() const;  // of a matrix that is not int4
  // Row `out` of the matrix times `scale`: an embedding. to: [in].
  void copy_row(std::int64_t row, float scale, std::span<float> to) const noexcept;

 private:
  std::int64_t in_ = 0;
  std::int64_t out_ = 0;
  Int4Matrix int4_;                   // either this, a view into the file,
  AlignedBuffer<float> values_;       // or these,
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
  Numerics numerics = Numerics::kFloat;  // of its products, never kMixed
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

// Immutable; safe from several threads. Keeps the file mapped as long as it lives.
struct Model {
  // Throws FormatError as WeightsFile does, and if a scale is not finite.
  static std::shared_ptr<const Model> load(std::shared_ptr<const WeightsFile> file,
                                           Numerics numerics = Numerics::kFloat);

  std::shared_ptr<const WeightsFile> file;
  Numerics numerics = Numerics::kFloat;
  // Of cross keys and values, of logits and of the contrastive head, never kMixed.
  Numerics after_encoder = Numerics::kFloat;
  ModelConfig config;
  Matrix embedding;  // [V, d]
  std::vector<EncoderLayer> encoder;
  std::vector<float> encoder_norm;  // [d], 1 + scale
  std::vector<DecoderLayer> decoder;
  std::vector<float> decoder_norm;
  Matrix contrastive_hidden;            // [d/4, d]
  std::vector<float> contrastive_bias;  // [d/4]
  Matrix contrastive_proj;              // [contrastive_dim, d/4]

  // Of at least so many positions.
  std::shared_ptr<const RopeTable> rope_table(std::int64_t positions) const {
    return rope_tables_.at_least(config, positions);
  }

 private:
  RopeTables rope_tables_;
};

}  // namespace needle::runtime
