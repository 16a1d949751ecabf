// The decoder over a few tokens at once, of one request or of several.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "needle/core/spin_barrier.h"
#include "needle/decode/token_set.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/layers.h"
#include "needle/runtime/request.h"

namespace needle::runtime {

// A token to go through the decoder. Rows of one request stand in the order of their positions.
struct DecoderRow {
  Request* request = nullptr;
  std::int64_t position = 0;
  TokenId token = 0;
  bool want_logits = false;
  const TokenSet* wanted = nullptr;  // of the logits; nullptr: all
};

// Every buffer of a pass, made once.
class DecoderBuffers {
 public:
  // Up to `rows` tokens at once, up to `logit_rows` of them with logits. `attended`: the most
  // positions that a row attends to, of the prompt or of the decoder.
  DecoderBuffers(const Machine& machine, const Model& model, std::int64_t rows,
                 std::int64_t logit_rows, std::int64_t attended);
  std::int64_t rows() const { return rows_; }
  // float32 [V] of the index-th row that wanted logits in the last pass.
  std::span<const float> logits(std::int64_t index) const;
  void set_logits(std::int64_t index, std::span<const float> logits);

 private:
  friend class DecoderPass;
  friend void decode(const Machine& machine, const Model& model, std::span<const DecoderRow> rows,
                     DecoderBuffers& buffers) noexcept;

  static constexpr std::int64_t kLeastPenalty = 8;
  static constexpr std::int64_t kMostPenalty = 512;

  // A thread's own. All keep the same residual stream and codes: cheaper than waiting for another.
  struct Private {
    AlignedBuffer<float> x;       // [n, d]
    AlignedBuffer<float> normed;  // [n, d]
    AlignedBuffer<float> scores;  // of the query heads of one key/value head
    Int8Buffer codes;             // of n rows
    ConstRows update;             // of x by the last sub-layer, still to be added
    float gate = 0;               // its factor
    bool held_up = false;         // waited long for another thread in the last pass
  };

  // Whether the next pass is for all threads. A core that another process takes holds the whole
  // team up for milliseconds at a barrier, many tokens' worth; after that one thread goes on alone
  // for a while, twice as long each time.
  bool as_team() noexcept;
  void team_is_done() noexcept;

  std::int64_t rows_;
  std::int64_t vocab_size_;
  std::int64_t vocab_stride_;
  std::vector<Private> threads_;
  SpinBarrier barrier_;                      // of all threads
  SpinBarrier nobody_{1};                    // of a pass on one thread
  std::int64_t alone_ = 0;                   // passes to come on one thread
  std::int64_t penalty_ = kLeastPenalty;     // of the next hold-up, in passes
  AlignedBuffer<float> q, attended, update;  // [n, d]
  AlignedBuffer<float> k, v;                 // [n, K * D]
  AlignedBuffer<float> hidden, up;           // [n, d_ff], with feed-forward layers
  AlignedBuffer<float> logits_;              // [logit rows, V]
};

// Feeds all rows, keeps their keys and values, computes the logits asked for; the requests'
// positions stay. Tokens and positions have been checked. A row's bits do not depend on the other
// rows nor on threads. Does not allocate.
void decode(const Machine& machine, const Model& model, std::span<const DecoderRow> rows,
            DecoderBuffers& buffers) noexcept;

}  // namespace needle::runtime
