#include <algorithm>
#include <utility>

#include "needle/runtime/encode.h"
#include "needle/runtime/int_kv.h"
#include "needle/runtime/row_team.h"

namespace needle::runtime {
namespace {

// Keys and values of every decoder layer's attention over the prompt, from the encoder's states.
class CrossPass {
 public:
  CrossPass(const Machine& machine, const Model& model, AlignedBuffer<float> states,
            Request& request)
      : machine_(machine),
        alone_{.kernels = machine.kernels},
        model_(model),
        config_(model.config),
        request_(request),
        count_(request.prompt_tokens),
        team_(machine, model, count_),
        states_(std::move(states)),
        codes_(model.numerics, count_, config_.d_model),
        k_(static_cast<std::size_t>(std::min(count_, kChunkRows) * config_.kv_dim() *
                                    static_cast<std::int64_t>(team_.threads()))),
        v_(static_cast<std::size_t>(count_ * config_.kv_dim())) {}

  // False if `stop` said so before a layer.
  bool run(const StopCheck& stop) {
    const Activations input =
        prepare(machine_, model_.after_encoder, {states_.data(), count_, config_.d_model},
                config_.d_model, codes_);
    if (all_int4(model_)) {
      states_ = {};  // only the codes are read from here on
    }
    for (std::size_t layer = 0; layer < model_.decoder.size(); ++layer) {
      if (stop && stop()) {
        return false;
      }
      team_.each_chunk([&](std::size_t thread, std::int64_t row, std::int64_t count) {
        project(layer, input, thread, row, count);
      });
      if (request_.int_attention) {
        request_.cross_int[layer].store_values(machine_, {v_.data(), count_, config_.kv_dim()});
      }
    }
    return true;
  }

 private:
  void project(std::size_t layer, const Activations& input, std::size_t thread, std::int64_t row,
               std::int64_t count) {
    const AttentionWeights& weights = model_.decoder[layer].cross.attention;
    const std::int64_t kv_dim = config_.kv_dim();
    const Activations rows = part_of(input, row, count);
    const Rows k{
        k_.data() + static_cast<std::int64_t>(thread) * std::min(count_, kChunkRows) * kv_dim,
        count, kv_dim};
    const Rows v{v_.data() + row * kv_dim, count, kv_dim};
    multiply(alone_, weights.k_proj, rows, k);
    multiply(alone_, weights.v_proj, rows, v);
    machine_.kernels->transform_heads(head_transform(weights.k_norm, nullptr, row),
                                      config_.num_kv_heads, k);
    if (request_.int_attention) {
      request_.cross_int[layer].store_keys(*machine_.kernels, row, {k.data, count, kv_dim});
      return;
    }
    for (std::int64_t r = 0; r < count; ++r) {
      request_.cross[layer].store(row + r, k.data + r * kv_dim, v.data + r * kv_dim);
    }
  }

  const Machine& machine_;
  const Machine alone_;
  const Model& model_;
  const ModelConfig& config_;
  Request& request_;
  std::int64_t count_;  // T
  RowTeam team_;
  AlignedBuffer<float> states_;  // [T, d]
  Int8Buffer codes_;
  AlignedBuffer<float> k_;  // [threads][chunk][K * D]
  AlignedBuffer<float> v_;  // [T, K * D]
};

}  // namespace

std::unique_ptr<Request> start_request(const Machine& machine, const Model& model,
                                       std::span<const TokenId> prompt, std::int64_t max_tokens,
                                       const StopCheck& stop) {
  auto request = std::make_unique<Request>(*machine.kernels, model, std::ssize(prompt), max_tokens);
  request->prompt_mask = padding_mask(model.config, prompt);
  AlignedBuffer<float> states = encode(machine, model, prompt, stop);
  if (states.data() == nullptr ||
      !CrossPass(machine, model, std::move(states), *request).run(stop)) {
    return nullptr;
  }
  return request;
}

}  // namespace needle::runtime
