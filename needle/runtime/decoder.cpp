#include "needle/runtime/decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "needle/runtime/int_kv.h"

namespace needle::runtime {
namespace {

AlignedBuffer<float> floats(std::int64_t count) {
  return AlignedBuffer<float>(static_cast<std::size_t>(count));
}

std::int64_t hidden_width(const ModelConfig& config) {
  return config.no_feedforward ? 0 : config.d_ff;
}

}  // namespace

DecoderBuffers::DecoderBuffers(const Machine& machine, const Model& model, std::int64_t rows,
                               std::int64_t logit_rows, std::int64_t attended_positions)
    : rows_(rows),
      vocab_size_(model.config.vocab_size),
      vocab_stride_(padded(vocab_size_)),
      threads_(machine.thread_count()),
      barrier_(machine.thread_count()),
      q(floats(rows * model.config.d_model)),
      attended(floats(rows * model.config.d_model)),
      update(floats(rows * model.config.d_model)),
      k(floats(rows * model.config.kv_dim())),
      v(floats(rows * model.config.kv_dim())),
      hidden(floats(rows * hidden_width(model.config))),
      up(floats(rows * hidden_width(model.config))),
      logits_(floats(logit_rows * vocab_stride_)) {
  const ModelConfig& config = model.config;
  for (Private& own : threads_) {
    own.x = floats(rows * config.d_model);
    own.normed = floats(rows * config.d_model);
    own.scores =
        floats(std::max(config.num_heads / config.num_kv_heads * padded(attended_positions),
                        attention_scratch(attended_positions,
                                          std::max(rows, config.num_heads / config.num_kv_heads))));
    own.codes = Int8Buffer(model.numerics, rows, std::max(config.d_model, hidden_width(config)));
  }
}

std::span<const float> DecoderBuffers::logits(std::int64_t index) const {
  return logits_.span().subspan(static_cast<std::size_t>(index * vocab_stride_),
                                static_cast<std::size_t>(vocab_size_));
}

void DecoderBuffers::set_logits(std::int64_t index, std::span<const float> logits) {
  std::ranges::copy(logits, logits_.data() + index * vocab_stride_);
}

bool DecoderBuffers::as_team() noexcept {
  if (threads_.size() == 1 || alone_ > 0) {
    alone_ = std::max<std::int64_t>(alone_ - 1, 0);
    return false;
  }
  return true;
}

void DecoderBuffers::team_is_done() noexcept {
  if (std::ranges::any_of(threads_, [](const Private& own) { return own.held_up; })) {
    alone_ = penalty_;
    penalty_ = std::min(2 * penalty_, kMostPenalty);
  } else {
    penalty_ = std::max(penalty_ / 2, kLeastPenalty);
  }
}

// What one thread of a team does. All threads go through the same stages; a stage's units
// (key/value heads, blocks of outputs) are dealt out by number, and the barrier stands only where a
// thread reads what another has written: twice a sub-layer.
class DecoderPass {
 public:
  DecoderPass(const Machine& machine, const Model& model, std::span<const DecoderRow> rows,
              DecoderBuffers& buffers, SpinBarrier& barrier, std::size_t thread,
              std::size_t threads)
      : kernels_(*machine.kernels),
        alone_{.kernels = machine.kernels},
        model_(model),
        config_(model.config),
        rows_(rows),
        count_(std::ssize(rows)),
        all_(buffers),
        own_(buffers.threads_[thread]),
        barrier_(barrier),
        thread_(static_cast<std::int64_t>(thread)),
        threads_(static_cast<std::int64_t>(threads)) {}

  void run() noexcept {
    barrier_.wait(index());  // a worker may have to wake up: that is no hold-up
    own_.held_up = false;
    own_.update = {};
    const float root = std::sqrt(static_cast<float>(config_.d_model));
    const auto width = static_cast<std::size_t>(config_.d_model);
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      model_.embedding.copy_row(rows_[row].token, root, own_.x.span().subspan(row * width, width));
    }
    for (std::size_t layer = 0; layer < model_.decoder.size(); ++layer) {
      self_attention(model_.decoder[layer].self, layer);
      cross_attention(model_.decoder[layer].cross, layer);
      if (model_.decoder[layer].ffn) {
        feed_forward(*model_.decoder[layer].ffn);
      }
    }
    logits();
  }

 private:
  std::size_t index() const { return static_cast<std::size_t>(thread_); }
  void wait() { own_.held_up = !barrier_.wait(index()) || own_.held_up; }

  struct Part {
    std::int64_t begin;
    std::int64_t end;
  };
  Part part_of(std::int64_t units) const {
    return {units * thread_ / threads_, units * (thread_ + 1) / threads_};
  }

  // Key/value heads as units where a head's outputs are whole blocks; else all heads are one unit.
  std::int64_t head_units() const {
    return config_.head_dim() % kPanelWidth == 0 ? config_.num_kv_heads : 1;
  }

  static Rows rows_of(AlignedBuffer<float>& buffer, std::int64_t count, std::int64_t width) {
    return {buffer.data(), count, width};
  }

  Activations activations(Numerics numerics, const AlignedBuffer<float>& from, std::int64_t count,
                          std::int64_t width) {
    return prepare(alone_, numerics, {from.data(), count, width}, width, own_.codes);
  }

  Activations norm(const SubLayer& layer) {
    kernels_.add_norm(own_.gate, own_.update, layer.norm.data(), config_.d_model,
                      rows_of(own_.x, count_, config_.d_model),
                      rows_of(own_.normed, count_, config_.d_model));
    own_.update = {};
    return activations(layer.numerics, own_.normed, count_, config_.d_model);
  }

  // The outputs of blocks begin .. end - 1.
  void multiply_blocks(const Matrix& matrix, const Activations& x, Rows y, std::int64_t begin,
                       std::int64_t end) {
    if (begin == end) {
      return;
    }
    if (matrix.is_int4()) {
      kernels_.multiply_int4(matrix.int4(), x.codes, y, begin, end);
      return;
    }
    // A row at a time: float sums of several at once would round otherwise.
    for (std::int64_t row = 0; row < x.x.count; ++row) {
      kernels_.multiply(matrix.panels(), {x.x.data + row * x.x.stride, 1, x.x.stride},
                        {y.data + row * y.stride, 1, y.stride}, begin, end);
    }
  }

  void multiply_part(const Matrix& matrix, const Activations& x, Rows y) {
    const Part part = part_of(padded(matrix.out()) / kPanelWidth);
    multiply_blocks(matrix, x, y, part.begin, part.end);
  }

  // The outputs of some units of heads, in one go: a matrix is read fastest from end to end.
  void project_heads(const Matrix& matrix, const Activations& x, AlignedBuffer<float>& to,
                     const Part& units) {
    const std::int64_t blocks = padded(matrix.out()) / kPanelWidth;
    multiply_blocks(matrix, x, rows_of(to, count_, matrix.out()),
                    blocks * units.begin / head_units(), blocks * units.end / head_units());
  }

  void transform_queries(const AttentionWeights& weights, const DecoderRow& row, std::int64_t head,
                         bool rotated, float* q) {
    const std::int64_t shared = config_.num_heads / config_.num_kv_heads;
    const std::int64_t width = shared * config_.head_dim();
    kernels_.transform_heads(
        head_transform(weights.q_norm, rotated ? row.request->rope.get() : nullptr, row.position,
                       1 / std::sqrt(static_cast<float>(config_.head_dim()))),
        shared, {q + head * width, 1, width});
  }

  // Calls body(head) for the key/value heads of this thread.
  template <typename Body>
  void for_own_heads(Body&& body) {
    const std::int64_t heads = config_.num_kv_heads / head_units();
    const Part part = part_of(head_units());
    for (std::int64_t head = part.begin * heads; head < part.end * heads; ++head) {
      body(head);
    }
  }

  void self_attention(const AttentionLayer& layer, std::size_t index) {
    const AttentionWeights& weights = layer.attention;
    const Activations input = norm(layer);
    const Part own = part_of(head_units());
    project_heads(weights.q_proj, input, all_.q, own);
    project_heads(weights.k_proj, input, all_.k, own);
    project_heads(weights.v_proj, input, all_.v, own);
    for_own_heads([&](std::int64_t head) {
      for (std::int64_t row = 0; row < count_; ++row) {
        store_key_value(weights, rows_[static_cast<std::size_t>(row)], row, head, index);
      }
      for (std::int64_t row = 0; row < count_; ++row) {
        const DecoderRow& at = rows_[static_cast<std::size_t>(row)];
        float* const q = all_.q.data() + row * config_.d_model;
        transform_queries(weights, at, head, true, q);
        attend_kv_head(kernels_, config_, at.request->self[index], head, at.position + 1, {}, q,
                       own_.scores.data(), all_.attended.data() + row * config_.d_model);
      }
    });
    finish_attention(layer);
  }

  void store_key_value(const AttentionWeights& weights, const DecoderRow& row, std::int64_t at,
                       std::int64_t head, std::size_t layer) {
    const std::int64_t first = at * config_.kv_dim() + head * config_.head_dim();
    float* const key = all_.k.data() + first;
    kernels_.transform_heads(head_transform(weights.k_norm, row.request->rope.get(), row.position),
                             1, {key, 1, config_.head_dim()});
    row.request->self[layer].store_head(head, row.position, key, all_.v.data() + first);
  }

  void cross_attention(const AttentionLayer& layer, std::size_t index) {
    const Activations input = norm(layer);
    project_heads(layer.attention.q_proj, input, all_.q, part_of(head_units()));
    for_own_heads([&](std::int64_t head) {
      for (std::int64_t row = 0; row < count_; ++row) {
        transform_queries(layer.attention, rows_[static_cast<std::size_t>(row)], head, false,
                          all_.q.data() + row * config_.d_model);
      }
      for (std::int64_t row = 0; row < count_;) {
        row += attend_prompt(index, head, row);
      }
    });
    finish_attention(layer);
  }

  // Rows of one request from `row` on; returns how many. In integers they go together, so that keys
  // and values are read once a query head instead of once a row.
  std::int64_t attend_prompt(std::size_t layer, std::int64_t head, std::int64_t row) {
    const Request& request = *rows_[static_cast<std::size_t>(row)].request;
    const std::int64_t at = row * config_.d_model;
    if (!request.int_attention) {
      attend_kv_head(kernels_, config_, request.cross[layer], head, request.prompt_tokens,
                     request.prompt_mask, all_.q.data() + at, own_.scores.data(),
                     all_.attended.data() + at);
      return 1;
    }
    std::int64_t end = row + 1;
    while (end < count_ && rows_[static_cast<std::size_t>(end)].request == &request) {
      ++end;
    }
    if (end == row + 1) {
      attend_kv_head_int(kernels_, config_, request.cross_int[layer], head, request.prompt_mask,
                         all_.q.data() + at, own_.scores.data(), all_.attended.data() + at);
      return 1;
    }
    const std::int64_t shared = config_.num_heads / config_.num_kv_heads;
    const std::uint8_t* const mask =
        request.prompt_mask.empty() ? nullptr : request.prompt_mask.data();
    for (std::int64_t query = head * shared; query < (head + 1) * shared; ++query) {
      const std::int64_t from = at + query * config_.head_dim();
      kernels_.attend(request.cross_int[layer].head(head), mask,
                      {all_.q.data() + from, end - row, config_.d_model}, own_.scores.data(),
                      {all_.attended.data() + from, end - row, config_.d_model});
    }
    return end - row;
  }

  void finish_attention(const AttentionLayer& layer) {
    wait();
    finish(layer, layer.attention.out_proj, all_.attended);
  }

  // x += gate * W from, on every thread's own x: the next norm does it.
  void finish(const SubLayer& layer, const Matrix& matrix, const AlignedBuffer<float>& from) {
    multiply_part(matrix, activations(layer.numerics, from, count_, matrix.in()),
                  rows_of(all_.update, count_, config_.d_model));
    wait();
    own_.gate = layer.gate;
    own_.update = {all_.update.data(), count_, config_.d_model};
  }

  void feed_forward(const FeedForwardLayer& layer) {
    const Activations input = norm(layer);
    const std::int64_t width = config_.d_ff;
    multiply_part(layer.gate_proj, input, rows_of(all_.hidden, count_, width));
    multiply_part(layer.up_proj, input, rows_of(all_.up, count_, width));
    const Part part = part_of(padded(width) / kPanelWidth);
    const std::int64_t begin = part.begin * kPanelWidth;
    const std::int64_t end = std::min(part.end * kPanelWidth, width);
    for (std::int64_t row = 0; row < count_; ++row) {
      activate(config_.activation, all_.up.data() + row * width + begin, end - begin,
               all_.hidden.data() + row * width + begin);
    }
    wait();
    finish(layer, layer.down_proj, all_.hidden);
  }

  // Logits of the rows that want them, in the blocks of 16 that hold a token which any of them
  // wants.
  void logits() {
    const std::int64_t d = config_.d_model;
    std::int64_t wanting = 0;
    for (std::int64_t row = 0; row < count_; ++row) {
      if (rows_[static_cast<std::size_t>(row)].want_logits) {
        const ConstRows update =
            own_.update.data == nullptr ? ConstRows{} : ConstRows{own_.update.data + row * d, 1, d};
        kernels_.add_norm(own_.gate, update, model_.decoder_norm.data(), d,
                          {own_.x.data() + row * d, 1, d},
                          {own_.normed.data() + wanting * d, 1, d});
        ++wanting;
      }
    }
    if (wanting == 0) {
      return;
    }
    const Activations input = activations(model_.after_encoder, own_.normed, wanting, d);
    const Rows to = rows_of(all_.logits_, wanting, all_.vocab_stride_);
    if (std::ranges::any_of(rows_, [](const DecoderRow& row) {
          return row.want_logits && row.wanted == nullptr;
        })) {
      multiply_part(model_.embedding, input, to);
      return;
    }
    multiply_wanted(input, to);
  }

  void multiply_wanted(const Activations& input, Rows to) {
    std::int64_t found = 0;
    std::int64_t skip = 0;  // counts blocks of the threads before this one
    const auto visit = [&](auto&& body) {
      for (std::size_t word = 0; word * 64 < static_cast<std::size_t>(all_.vocab_size_); ++word) {
        std::uint64_t any = 0;
        for (const DecoderRow& row : rows_) {
          any |= row.want_logits ? row.wanted->words()[word] : 0;
        }
        for (int block = 0; any != 0; ++block, any >>= kPanelWidth) {
          if ((any & 0xFFFF) != 0) {
            body(static_cast<std::int64_t>(word) * 4 + block);
          }
        }
      }
    };
    visit([&](std::int64_t) { ++found; });
    const Part part = part_of(found);
    std::int64_t begin = 0;  // of a run of neighbours
    std::int64_t end = 0;
    visit([&](std::int64_t block) {
      const std::int64_t number = skip++;
      if (number < part.begin || number >= part.end) {
        return;
      }
      if (block != end) {
        multiply_blocks(model_.embedding, input, to, begin, end);
        begin = block;
      }
      end = block + 1;
    });
    multiply_blocks(model_.embedding, input, to, begin, end);
  }

  const Kernels& kernels_;
  const Machine alone_;
  const Model& model_;
  const ModelConfig& config_;
  std::span<const DecoderRow> rows_;
  std::int64_t count_;  // n
  DecoderBuffers& all_;
  DecoderBuffers::Private& own_;
  SpinBarrier& barrier_;
  std::int64_t thread_;
  std::int64_t threads_;
};

void decode(const Machine& machine, const Model& model, std::span<const DecoderRow> rows,
            DecoderBuffers& buffers) noexcept {
  if (!buffers.as_team()) {
    DecoderPass(machine, model, rows, buffers, buffers.nobody_, 0, 1).run();
    return;
  }
  const auto body = [&](std::size_t thread, std::size_t threads) {
    DecoderPass(machine, model, rows, buffers, threads == 1 ? buffers.nobody_ : buffers.barrier_,
                thread, threads)
        .run();
  };
  machine.pool->run_team(std::cref(body));
  buffers.team_is_done();
}

}  // namespace needle::runtime
