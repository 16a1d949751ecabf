#include "needle/runtime/encode.h"

#include <algorithm>
#include <cmath>

#include "needle/runtime/int_kv.h"

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

constexpr std::int64_t kRowWork = 32;  // of one float of a norm, for Machine::split

// Buffers of a stretch of T tokens, used by one layer after the other.
struct EncoderPass {
  EncoderPass(const Machine& on, const Model& weights, std::int64_t tokens)
      : machine(on),
        model(weights),
        config(weights.config),
        count(tokens),
        rope(config, tokens),
        x(floats(count * config.d_model)),
        normed(floats(count * config.d_model)),
        q(floats(count * config.d_model)),
        k(floats(count * config.kv_dim())),
        v(floats(count * config.kv_dim())),
        hidden(floats(config.no_feedforward ? 0 : count * config.d_ff)),
        up(floats(config.no_feedforward ? 0 : count * config.d_ff)),
        codes(tokens, std::max(config.d_model, config.no_feedforward ? 0 : config.d_ff)),
        cache(config, int_attention() ? 0 : tokens) {
    if (int_attention()) {
      int_cache = IntKvCache(config, tokens);
    }
  }

  bool int_attention() const { return uses_int_attention(*machine.kernels, model, count); }

  Activations activations(const AlignedBuffer<float>& rows, std::int64_t width) {
    return prepare(machine, model, view(rows, count, width), width, codes);
  }

  void norm_rows(std::span<const float> factors) {
    const std::int64_t d = config.d_model;
    machine.split(count, d * kRowWork, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        rms_norm(factors, x.data() + row * d, normed.data() + row * d);
      }
    });
  }

  void self_attention(const AttentionLayer& layer, KeyMask mask) {
    const AttentionWeights& weights = layer.attention;
    norm_rows(layer.norm);
    const Activations input = activations(normed, config.d_model);
    multiply(machine, weights.q_proj, input, view(q, count, config.d_model));
    multiply(machine, weights.k_proj, input, view(k, count, config.kv_dim()));
    multiply(machine, weights.v_proj, input, view(v, count, config.kv_dim()));
    const float root = std::sqrt(static_cast<float>(config.head_dim()));
    machine.split(count, 2 * config.d_model * kRowWork, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        float* const key = k.data() + row * config.kv_dim();
        transform_heads(
            {.norm = weights.q_norm, .rope = &rope, .first_position = row, .scale = 1 / root},
            config.num_heads, {q.data() + row * config.d_model, 1, config.d_model});
        transform_heads({.norm = weights.k_norm, .rope = &rope, .first_position = row},
                        config.num_kv_heads, {key, 1, config.kv_dim()});
        if (!int_attention()) {
          cache.store(row, key, v.data() + row * config.kv_dim());
        }
      }
    });
    attend(mask);
    multiply(machine, weights.out_proj, activations(normed, config.d_model),
             view(q, count, config.d_model));
    add_gated(layer.gate, q.data(), count * config.d_model, x.data());
  }

  // From q, k, v to `normed`, whose rows have been read.
  void attend(KeyMask mask) {
    const ConstRows queries = view(std::as_const(q), count, config.d_model);
    const Rows out = view(normed, count, config.d_model);
    if (int_attention()) {
      int_cache.store(machine, view(std::as_const(k), count, config.kv_dim()),
                      view(std::as_const(v), count, config.kv_dim()));
      attend_int(machine, config, int_cache, mask, queries, out);
    } else {
      attend_rows(machine, config, cache, count, mask, queries, out);
    }
  }

  void feed_forward(const FeedForwardLayer& layer) {
    norm_rows(layer.norm);
    const Activations input = activations(normed, config.d_model);
    multiply(machine, layer.gate_proj, input, view(hidden, count, config.d_ff));
    multiply(machine, layer.up_proj, input, view(up, count, config.d_ff));
    activate(config.activation, up.data(), count * config.d_ff, hidden.data());
    multiply(machine, layer.down_proj, activations(hidden, config.d_ff),
             view(q, count, config.d_model));
    add_gated(layer.gate, q.data(), count * config.d_model, x.data());
  }

  const Machine& machine;
  const Model& model;
  const ModelConfig& config;
  std::int64_t count;  // T
  RopeTable rope;
  AlignedBuffer<float> x, normed, q, k, v, hidden, up;
  Int8Buffer codes;
  KvCache cache;         // either this
  IntKvCache int_cache;  // or this
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
                            std::span<const TokenId> tokens) {
  const std::int64_t d = model.config.d_model;
  EncoderPass pass(machine, model, std::ssize(tokens));
  const float root = std::sqrt(static_cast<float>(d));
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const std::size_t width = static_cast<std::size_t>(d);
    model.embedding.copy_row(tokens[t], root, pass.x.span().subspan(t * width, width));
  }
  const std::vector<std::uint8_t> mask = padding_mask(model.config, tokens);
  for (const EncoderLayer& layer : model.encoder) {
    pass.self_attention(layer.self, mask);
    if (layer.ffn) {
      pass.feed_forward(*layer.ffn);
    }
  }
  pass.norm_rows(model.encoder_norm);
  return std::move(pass.normed);
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
  Int8Buffer codes(1, config.d_model);
  const auto row = [&](const std::vector<float>& values) {
    return prepare(machine, model, {values.data(), 1, std::ssize(values)}, std::ssize(values),
                   codes);
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

std::unique_ptr<Request> start_request(const Machine& machine, const Model& model,
                                       std::span<const TokenId> prompt, std::int64_t max_tokens) {
  const ModelConfig& config = model.config;
  auto request = std::make_unique<Request>(*machine.kernels, model, std::ssize(prompt), max_tokens);
  request->prompt_mask = padding_mask(config, prompt);
  AlignedBuffer<float> states = encode(machine, model, prompt);
  const std::int64_t count = std::ssize(prompt);
  Int8Buffer codes(count, config.d_model);
  const Activations input = prepare(
      machine, model, view(std::as_const(states), count, config.d_model), config.d_model, codes);
  if (std::ranges::all_of(model.decoder, [](const DecoderLayer& layer) {
        return layer.cross.attention.k_proj.is_int4() && layer.cross.attention.v_proj.is_int4();
      })) {
    states = {};  // only the codes are read from here on
  }
  AlignedBuffer<float> k = floats(count * config.kv_dim());
  AlignedBuffer<float> v = floats(count * config.kv_dim());
  for (std::size_t layer = 0; layer < model.decoder.size(); ++layer) {
    const AttentionWeights& weights = model.decoder[layer].cross.attention;
    multiply(machine, weights.k_proj, input, view(k, count, config.kv_dim()));
    multiply(machine, weights.v_proj, input, view(v, count, config.kv_dim()));
    transform_heads({.norm = weights.k_norm}, config.num_kv_heads, view(k, count, config.kv_dim()));
    if (request->int_attention) {
      request->cross_int[layer].store(machine, view(std::as_const(k), count, config.kv_dim()),
                                      view(std::as_const(v), count, config.kv_dim()));
      continue;
    }
    for (std::int64_t t = 0; t < count; ++t) {
      request->cross[layer].store(t, k.data() + t * config.kv_dim(),
                                  v.data() + t * config.kv_dim());
    }
  }
  return request;
}

}  // namespace needle::runtime
