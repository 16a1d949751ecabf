// The loops between the matrix products of a layer, as a table of functions: one table an
// instruction set, one file a table, each with its own compile flags (as in runtime/kernels). What
// they compute is specified by norm.cpp, rope.cpp and attention.cpp; tests hold them against those.
// No inline functions here, so that no file's flags leak into another. Functions work on the rows
// they are given, in the caller's thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace needle {

// Where the heads of tokens lie. Token n is position n % length of batch row n / length. One row of
// `projected` holds q heads, then k heads, then v heads, `dim` values each; a kind that is not
// there has no heads (queries of cross-attention, keys and values of the encoder).
struct HeadLayout {
  std::int64_t length = 0;    // positions a batch row
  std::int64_t heads = 0;     // of q
  std::int64_t kv_heads = 0;  // of k and of v
  std::int64_t dim = 0;       // D, even
  std::int64_t stride = 0;    // values from one row of `projected` to the next
};

// Tables of rotary positions, [length, D/2]; null: no rotation.
struct RotaryTables {
  const float* cos = nullptr;
  const float* sin = nullptr;
};

struct HeadsForward {
  HeadLayout layout;
  RotaryTables rope;
  const float* projected = nullptr;  // [N, stride]
  const float* q_scale = nullptr;    // [D]
  const float* k_scale = nullptr;
  float* q = nullptr;  // [B, heads, length, D]: normed and rotated
  float* k = nullptr;  // [B, kv_heads, length, D]
  float* v = nullptr;
  float* inverse_rms = nullptr;  // [N, heads + kv_heads]
};

struct HeadsBackward {
  HeadLayout layout;
  RotaryTables rope;
  const float* projected = nullptr;
  const float* q_scale = nullptr;
  const float* k_scale = nullptr;
  const float* inverse_rms = nullptr;
  const float* q_grad = nullptr;  // as q, k, v
  const float* k_grad = nullptr;
  const float* v_grad = nullptr;
  float* projected_grad = nullptr;        // [N, stride]; or
  std::uint16_t* rounded_grad = nullptr;  // the same as bfloat16
  float* q_scale_grad = nullptr;          // [D], added to
  float* k_scale_grad = nullptr;
};

// normed = (1 + scale) * x / sqrt(mean(x^2) + epsilon)
struct NormForward {
  std::int64_t width = 0;
  const float* x = nullptr;          // [N, width]
  const float* scale = nullptr;      // [width]
  float* normed = nullptr;           // [N, width]; or
  std::uint16_t* rounded = nullptr;  // the same as bfloat16
  float* inverse_rms = nullptr;      // [N]
};

struct NormBackward {
  std::int64_t width = 0;
  const float* x = nullptr;            // [N, width]
  const float* scale = nullptr;        // [width]
  const float* inverse_rms = nullptr;  // [N]
  const float* normed_grad = nullptr;  // [N, width]
  const float* through = nullptr;      // [N, width], gradient that passes the norm by; null: none
  float* x_grad = nullptr;             // [N, width]
  float* scale_grad = nullptr;         // [width], added to
};

// Scores of one head: row i of `rows` rows, `keys` columns, row after row. Causal: row i sees
// columns 0 .. first_row + i. `scale`, above 0, is that of scores which are not multiplied by it
// yet, and of their gradient.
struct ScoreBlock {
  std::int64_t rows = 0;
  std::int64_t keys = 0;
  bool causal = false;
  std::int64_t first_row = 0;
  float scale = 1.0F;
};

// Cross-entropy and z-loss of rows of logits (train/loss.h).
struct LossRows {
  std::int64_t width = 0;                // V
  const std::int64_t* target = nullptr;  // [rows]
  const float* weight = nullptr;         // [rows], of the cross-entropy
  float z_weight = 0.0F;
};

// A matrix through the quantiser and back (quant/group_quant.h): groups along rows of `width`.
struct QuantizedRows {
  std::int64_t width = 0;
  std::int64_t group = 0;
  float max_code = 0.0F;
  float min_scale = 0.0F;
};

// parameter -= lr * ..., as train/adamw.h; corrections already taken into the two factors.
struct AdamUpdate {
  float beta1 = 0.0F;
  float beta2 = 0.0F;
  float eps = 0.0F;
  float decay = 1.0F;            // of the parameter
  float root_correction = 1.0F;  // of the root of the second moment
  float step = 0.0F;             // -lr / correction of the first moment
};
// As train/muon.h.
struct MuonUpdate {
  float momentum = 0.0F;
  float weight_decay = 0.0F;
  float lr = 0.0F;
};

struct RowKernels {
  const char* name;
  bool (*supported)();
  void (*norm_forward)(const NormForward& task, std::int64_t first, std::int64_t last);
  void (*norm_backward)(const NormBackward& task, std::int64_t first, std::int64_t last);
  void (*heads_forward)(const HeadsForward& task, std::int64_t first, std::int64_t last);
  void (*heads_backward)(const HeadsBackward& task, std::int64_t first, std::int64_t last);
  // In place: scores become weights; what may not be seen 0.
  void (*softmax)(const ScoreBlock& block, float* scores);
  // In place: the gradient of the weights becomes that of the scores.
  void (*softmax_backward)(const ScoreBlock& block, const float* weights, float* grad);
  // Logits become their gradient, in place; losses[2 i] and [2 i + 1] cross-entropy and z of row i.
  void (*loss_rows)(const LossRows& task, std::int64_t first, std::int64_t last, float* logits,
                    float* losses);
  void (*fake_quantize)(const QuantizedRows& task, const float* weight, std::int64_t first,
                        std::int64_t last, float* result);
  void (*adam)(const AdamUpdate& update, std::int64_t count, const float* grad, float* parameter,
               float* first_moment, float* second_moment);
  void (*muon)(const MuonUpdate& update, std::int64_t count, const float* orthogonal,
               float* parameter, float* momentum);
};

extern const RowKernels kGenericRowKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;
#endif

// The best that this CPU has; NEEDLE_ISA=generic, avx2 or avx512 (and what runtime/kernels knows
// besides) forces one. Throws ConfigError on a name that this CPU does not have.
const RowKernels& row_kernels();
// By name, one of the engine's (kernels.h of runtime) included; null if this CPU has no such.
const RowKernels* find_row_kernels(std::string_view name);

}  // namespace needle
