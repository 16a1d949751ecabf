#include "needle/runtime/encode.h"

#include <algorithm>
#include <cmath>

#include "needle/runtime/int_kv.h"
#include "needle/runtime/row_team.h"

namespace needle::runtime {
namespace {

AlignedBuffer<float> floats(std::int64_t count) {
  return AlignedBuffer<float>(static_cast<std::size_t>(count));
}

ConstRows view(const AlignedBuffer<float>& buffer, std::int64_t count, std::int64_t width) {
  return {buffer.data(), count, width};
}
Rows view(AlignedBuffer<float>& buffer, std::int64_t count, std::int64_t width) {
  return {buffer.data(), count, width};
}

// Buffers of a stretch of T tokens, used by one layer after the other. Between two attentions a row
// depends on no other: each thread takes its rows from one to the next.
class EncoderPass {
 public:
  EncoderPass(const Machine& machine, const Model& model, std::span<const TokenId> tokens)
      : machine_(machine),
        alone_{.kernels = machine.kernels},
        model_(model),
        config_(model.config),
        tokens_(tokens),
        count_(std::ssize(tokens)),
        mask_(padding_mask(config_, tokens)),
        team_(machine, model, count_),
        int_attention_(uses_int_attention(*machine.kernels, model, count_)),
        rope_(model.rope_table(count_)),
        x_(floats(count_ * config_.d_model)),
        q_(floats(count_ * config_.d_model)),
        v_(floats(int_attention_ ? count_ * config_.kv_dim() : 0)),
        own_(team_.threads()) {
    for (int parity = 0; parity < 2; ++parity) {
      int_cache_.emplace_back(config_, int_attention_ ? count_ : 0);
      cache_.emplace_back(config_, int_attention_ ? 0 : count_);
    }
    const std::int64_t rows = std::min(count_, kChunkRows);
    const std::int64_t width = config_.no_feedforward ? 0 : config_.d_ff;
    for (Own& own : own_) {
      own.normed = floats(rows * config_.d_model);
      own.update = floats(rows * config_.d_model);
      own.k = floats(rows * config_.kv_dim());
      own.v = floats(int_attention_ ? 0 : rows * config_.kv_dim());
      own.hidden = floats(rows * width);
      own.up = floats(rows * width);
      own.scores = floats(int_attention_ ? attention_scratch(count_, rows) : rows * padded(count_));
      own.codes = Int8Buffer(model.numerics, rows, std::max(config_.d_model, width));
    }
  }

  // The states after the final norm, [T, d]; empty if `stop` said so before a layer.
  AlignedBuffer<float> run(const StopCheck& stop) {
    team_.each_chunk([&](std::size_t thread, std::int64_t row, std::int64_t count) {
      embed(row, count);
      project(0, own_[thread], row, count, 0, {});
    });
    for (std::size_t layer = 0; layer < model_.encoder.size(); ++layer) {
      if (stop && stop()) {
        return {};
      }
      pack_values(layer);
      team_.each_chunk([&](std::size_t thread, std::int64_t row, std::int64_t count) {
        attend_and_go_on(layer, own_[thread], row, count);
      });
    }
    return std::move(x_);
  }

 private:
  // A thread's, of one chunk of rows.
  struct Own {
    AlignedBuffer<float> normed, update, k, v, hidden, up, scores;
    Int8Buffer codes;
  };

  void embed(std::int64_t row, std::int64_t count) {
    const float root = std::sqrt(static_cast<float>(config_.d_model));
    const auto width = static_cast<std::size_t>(config_.d_model);
    for (auto t = static_cast<std::size_t>(row); t < static_cast<std::size_t>(row + count); ++t) {
      model_.embedding.copy_row(tokens_[t], root, x_.span().subspan(t * width, width));
    }
  }

  Rows x_rows(std::int64_t row, std::int64_t count) {
    return {x_.data() + row * config_.d_model, count, config_.d_model};
  }
  Rows q_rows(std::int64_t row, std::int64_t count) {
    return {q_.data() + row * config_.d_model, count, config_.d_model};
  }

  Activations activations(Numerics numerics, Own& own, const AlignedBuffer<float>& from,
                          std::int64_t count, std::int64_t width) {
    return prepare(alone_, numerics, {from.data(), count, width}, width, own.codes);
  }

  // Ends the sub-layer before, if there was one, and norms for the next.
  Activations norm(const SubLayer& layer, float gate, ConstRows update, Own& own, std::int64_t row,
                   std::int64_t count) {
    const std::int64_t d = config_.d_model;
    machine_.kernels->add_norm(gate, update, layer.norm.data(), d, x_rows(row, count),
                               view(own.normed, count, d));
    return activations(layer.numerics, own, own.normed, count, d);
  }

  // Queries, keys and values of a layer.
  void project(std::size_t layer, Own& own, std::int64_t row, std::int64_t count, float gate,
               ConstRows update) {
    const AttentionLayer& self = model_.encoder[layer].self;
    const AttentionWeights& weights = self.attention;
    const std::int64_t kv_dim = config_.kv_dim();
    const Activations input = norm(self, gate, update, own, row, count);
    const Rows q = q_rows(row, count);
    const Rows k = view(own.k, count, kv_dim);
    const Rows v =
        int_attention_ ? Rows{v_.data() + row * kv_dim, count, kv_dim} : view(own.v, count, kv_dim);
    multiply(alone_, weights.q_proj, input, q);
    multiply(alone_, weights.k_proj, input, k);
    multiply(alone_, weights.v_proj, input, v);
    const float root = std::sqrt(static_cast<float>(config_.head_dim()));
    machine_.kernels->transform_heads(head_transform(weights.q_norm, rope_.get(), row, 1 / root),
                                      config_.num_heads, q);
    machine_.kernels->transform_heads(head_transform(weights.k_norm, rope_.get(), row),
                                      config_.num_kv_heads, k);
    if (int_attention_) {
      int_cache_[layer % 2].store_keys(*machine_.kernels, row, {k.data, count, kv_dim});
      return;
    }
    for (std::int64_t r = 0; r < count; ++r) {
      cache_[layer % 2].store(row + r, k.data + r * kv_dim, v.data + r * kv_dim);
    }
  }

  void pack_values(std::size_t layer) {
    if (int_attention_) {
      int_cache_[layer % 2].store_values(machine_,
                                         view(std::as_const(v_), count_, config_.kv_dim()));
    }
  }

  // From the attention of a layer to the projections of the next one.
  void attend_and_go_on(std::size_t layer, Own& own, std::int64_t row, std::int64_t count) {
    const std::int64_t d = config_.d_model;
    const EncoderLayer& here = model_.encoder[layer];
    attend(layer, own, row, count);  // to own.normed
    multiply(alone_, here.self.attention.out_proj,
             activations(here.self.numerics, own, own.normed, count, d),
             view(own.update, count, d));
    float gate = here.self.gate;
    const ConstRows update = view(std::as_const(own.update), count, d);
    if (here.ffn) {
      feed_forward(*here.ffn, gate, own, row, count);
      gate = here.ffn->gate;
    }
    if (layer + 1 < model_.encoder.size()) {
      project(layer + 1, own, row, count, gate, update);
    } else {
      machine_.kernels->add_norm(gate, update, model_.encoder_norm.data(), d, x_rows(row, count),
                                 x_rows(row, count));
    }
  }

  void attend(std::size_t layer, Own& own, std::int64_t row, std::int64_t count) {
    const std::int64_t head_dim = config_.head_dim();
    const std::int64_t shared = config_.num_heads / config_.num_kv_heads;
    for (std::int64_t head = 0; head < config_.num_heads; ++head) {
      const Rows rows = q_rows(row, count);
      const ConstRows q{rows.data + head * head_dim, count, rows.stride};
      const Rows out{own.normed.data() + head * head_dim, count, config_.d_model};
      if (int_attention_) {
        machine_.kernels->attend(int_cache_[layer % 2].head(head / shared),
                                 mask_.empty() ? nullptr : mask_.data(), q, own.scores.data(), out);
      } else {
        attend_head(*machine_.kernels, cache_[layer % 2], head / shared, count_, mask_, q,
                    own.scores.data(), out);
      }
    }
  }

  // Ends the attention with its gate; own.update becomes the layer's.
  void feed_forward(const FeedForwardLayer& layer, float gate, Own& own, std::int64_t row,
                    std::int64_t count) {
    const std::int64_t d = config_.d_model;
    const std::int64_t width = config_.d_ff;
    const Activations input =
        norm(layer, gate, view(std::as_const(own.update), count, d), own, row, count);
    multiply(alone_, layer.gate_proj, input, view(own.hidden, count, width));
    multiply(alone_, layer.up_proj, input, view(own.up, count, width));
    activate(config_.activation, own.up.data(), count * width, own.hidden.data());
    multiply(alone_, layer.down_proj, activations(layer.numerics, own, own.hidden, count, width),
             view(own.update, count, d));
  }

  const Machine& machine_;
  const Machine alone_;
  const Model& model_;
  const ModelConfig& config_;
  std::span<const TokenId> tokens_;
  std::int64_t count_;  // T
  std::vector<std::uint8_t> mask_;
  RowTeam team_;
  bool int_attention_;
  std::shared_ptr<const RopeTable> rope_;
  AlignedBuffer<float> x_;  // [T, d]
  AlignedBuffer<float> q_;  // [T, d]
  AlignedBuffer<float> v_;  // [T, K * D], until all of them are known
  // By the parity of the layer: while one is read, the next is written.
  std::vector<IntKvCache> int_cache_;  // either these
  std::vector<KvCache> cache_;         // or these
  std::vector<Own> own_;               // a thread each
};

}  // namespace

std::vector<std::uint8_t> padding_mask(const ModelConfig& config, std::span<const TokenId> tokens) {
  const auto is_pad = [&config](TokenId token) { return token == config.pad_token_id; };
  std::vector<std::uint8_t> mask;
  if (std::ranges::any_of(tokens, is_pad)) {
    mask.resize(tokens.size());
    std::ranges::transform(tokens, mask.begin(),
                           [&](TokenId token) { return is_pad(token) ? 0 : 1; });
  }
  return mask;
}

AlignedBuffer<float> encode(const Machine& machine, const Model& model,
                            std::span<const TokenId> tokens, const StopCheck& stop) {
  return EncoderPass(machine, model, tokens).run(stop);
}

std::vector<float> embed(const Machine& machine, const Model& model,
                         std::span<const TokenId> tokens) {
  const ModelConfig& config = model.config;
  const auto d = static_cast<std::size_t>(config.d_model);
  std::vector<float> pooled(d);  // of no text at all: zeros, as of padding
  if (!tokens.empty()) {
    const AlignedBuffer<float> states = encode(machine, model, tokens);
    std::size_t count = 0;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      if (tokens[t] != config.pad_token_id) {
        std::ranges::transform(pooled, states.span().subspan(t * d, d), pooled.begin(),
                               std::plus<>());
        ++count;
      }
    }
    for (float& value : pooled) {
      value /= static_cast<float>(std::max<std::size_t>(count, 1));
    }
  }
  std::vector<float> hidden(model.contrastive_bias.size());
  std::vector<float> embedding(static_cast<std::size_t>(config.contrastive_dim));
  Int8Buffer codes(model.numerics, 1, config.d_model);
  const auto row = [&](const std::vector<float>& values) {
    return prepare(machine, model.after_encoder, {values.data(), 1, std::ssize(values)},
                   std::ssize(values), codes);
  };
  multiply(machine, model.contrastive_hidden, row(pooled), {hidden.data(), 1, std::ssize(hidden)});
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    hidden[i] = std::max(hidden[i] + model.contrastive_bias[i], 0.0f);
  }
  multiply(machine, model.contrastive_proj, row(hidden),
           {embedding.data(), 1, config.contrastive_dim});
  float squares = 0;
  for (const float value : embedding) {
    squares += value * value;
  }
  const float length = std::sqrt(squares + 1e-12f);
  for (float& value : embedding) {
    value /= length;
  }
  return embedding;
}

}  // namespace needle::runtime
