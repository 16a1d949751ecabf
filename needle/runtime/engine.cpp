#include "needle/runtime/engine.h"

#include <cmath>
#include <utility>

#include "needle/core/error.h"
#include "needle/runtime/encode.h"
#include "needle/runtime/request.h"

namespace needle::runtime {
namespace {

constexpr std::int64_t kMaxTokens = 1 << 20;

void check_tokens(const ModelConfig& config, std::span<const TokenId> tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    NEEDLE_CHECK(tokens[i] >= 0 && tokens[i] < config.vocab_size,
                 "token {} at position {} is outside the vocabulary of {}", tokens[i], i,
                 config.vocab_size);
  }
}

// The decoder, one token at a time.
class DecoderStep {
 public:
  DecoderStep(const Machine& machine, const Model& model, Request& request)
      : machine_(machine), model_(model), config_(model.config), request_(request) {}

  void self_attention(const AttentionLayer& layer, KvCache& cache) noexcept {
    const AttentionWeights& weights = layer.attention;
    rms_norm(layer.norm, request_.x.data(), request_.normed.data());
    const Activations input = activations(request_.normed, config_.d_model);
    multiply(machine_, weights.q_proj, input, row(request_.q));
    multiply(machine_, weights.k_proj, input, row(request_.k));
    multiply(machine_, weights.v_proj, input, row(request_.v));
    transform_queries(weights, &request_.rope);
    transform_heads(
        {.norm = weights.k_norm, .rope = &request_.rope, .first_position = request_.position},
        config_.num_kv_heads, row(request_.k));
    cache.store(request_.position, request_.k.data(), request_.v.data());
    attend(layer, cache, request_.position + 1, {});
  }

  void cross_attention(const AttentionLayer& layer, std::size_t index) noexcept {
    rms_norm(layer.norm, request_.x.data(), request_.normed.data());
    project(layer.attention.q_proj, request_.normed, request_.q);
    transform_queries(layer.attention, nullptr);
    if (request_.int_attention) {
      attend_one_int(*machine_.kernels, config_, request_.cross_int[index], request_.prompt_mask,
                     request_.q.data(), request_.scores.data(), request_.attended.data());
      finish_attention(layer);
    } else {
      attend(layer, request_.cross[index], request_.prompt_tokens, request_.prompt_mask);
    }
  }

  void feed_forward(const FeedForwardLayer& layer) noexcept {
    rms_norm(layer.norm, request_.x.data(), request_.normed.data());
    const Activations input = activations(request_.normed, config_.d_model);
    multiply(machine_, layer.gate_proj, input, row(request_.hidden));
    multiply(machine_, layer.up_proj, input, row(request_.up));
    activate(config_.activation, request_.up.data(), config_.d_ff, request_.hidden.data());
    project(layer.down_proj, request_.hidden, request_.update);
    add_gated(layer.gate, request_.update.data(), config_.d_model, request_.x.data());
  }

  void logits() noexcept {
    rms_norm(model_.decoder_norm, request_.x.data(), request_.normed.data());
    project(model_.embedding, request_.normed, request_.logits);
  }

 private:
  static Rows row(AlignedBuffer<float>& buffer) {
    return {buffer.data(), 1, static_cast<std::int64_t>(buffer.size())};
  }

  Activations activations(const AlignedBuffer<float>& from, std::int64_t width) {
    return prepare(machine_, model_, {from.data(), 1, width}, width, request_.codes);
  }

  void project(const Matrix& matrix, const AlignedBuffer<float>& from, AlignedBuffer<float>& to) {
    multiply(machine_, matrix, activations(from, matrix.in()), row(to));
  }

  void transform_queries(const AttentionWeights& weights, const RopeTable* rope) {
    transform_heads({.norm = weights.q_norm,
                     .rope = rope,
                     .first_position = request_.position,
                     .scale = 1 / std::sqrt(static_cast<float>(config_.head_dim()))},
                    config_.num_heads, row(request_.q));
  }

  void attend(const AttentionLayer& layer, const KvCache& cache, std::int64_t count, KeyMask mask) {
    attend_one(*machine_.kernels, config_, cache, count, mask, request_.q.data(),
               request_.scores.data(), request_.attended.data());
    finish_attention(layer);
  }

  void finish_attention(const AttentionLayer& layer) {
    project(layer.attention.out_proj, request_.attended, request_.update);
    add_gated(layer.gate, request_.update.data(), config_.d_model, request_.x.data());
  }

  const Machine& machine_;
  const Model& model_;
  const ModelConfig& config_;
  Request& request_;
};

// Advances the request by one token that the caller has checked.
void decode_step(const Machine& machine, const Model& model, Request& request, TokenId token,
                 bool want_logits) noexcept {
  const float root = std::sqrt(static_cast<float>(model.config.d_model));
  model.embedding.copy_row(token, root, request.x.span());
  DecoderStep step(machine, model, request);
  for (std::size_t layer = 0; layer < model.decoder.size(); ++layer) {
    step.self_attention(model.decoder[layer].self, request.self[layer]);
    step.cross_attention(model.decoder[layer].cross, layer);
    if (model.decoder[layer].ffn) {
      step.feed_forward(*model.decoder[layer].ffn);
    }
  }
  if (want_logits) {
    step.logits();
  }
  ++request.position;
}

class RuntimeSession final : public EngineSession {
 public:
  RuntimeSession(const Machine& machine, const Model& model, std::unique_ptr<Request> request)
      : machine_(machine), model_(model), request_(std::move(request)) {}

  std::span<const float> feed(std::span<const TokenId> tokens,
                              const TokenSet* /*wanted*/) override {
    NEEDLE_CHECK(!tokens.empty(), "feed needs at least one token");
    check_tokens(model_.config, tokens);
    NEEDLE_CHECK(std::ssize(tokens) <= request_->max_tokens - request_->position,
                 "the session was started for {} decoder tokens", request_->max_tokens);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      decode_step(machine_, model_, *request_, tokens[i], i + 1 == tokens.size());
    }
    return std::as_const(request_->logits)
        .span()
        .first(static_cast<std::size_t>(model_.config.vocab_size));
  }

  std::int64_t position() const override { return request_->position; }

  void rewind(std::int64_t position) override {
    NEEDLE_CHECK(position >= 0 && position <= request_->position,
                 "rewind to position {} of a session at {}", position, request_->position);
    request_->position = position;  // what the caches hold beyond it is overwritten
  }

 private:
  const Machine& machine_;
  const Model& model_;
  std::unique_ptr<Request> request_;
};

}  // namespace

RuntimeEngine::RuntimeEngine(std::shared_ptr<const Model> model, const EngineOptions& options)
    : model_(std::move(model)),
      pool_(options.threads == 1 ? nullptr : std::make_unique<ThreadPool>(options.threads)),
      machine_{.kernels = options.kernels != nullptr ? options.kernels : &select_kernels(),
               .pool = pool_.get()} {
  NEEDLE_CHECK(model_->numerics == Numerics::kFloat || machine_.kernels->multiply_int4 != nullptr,
               "the kernels {} have no integer products; load the model with Numerics::kFloat",
               machine_.kernels->name);
}

RuntimeEngine::~RuntimeEngine() = default;

std::int64_t RuntimeEngine::vocab_size() const { return model_->config.vocab_size; }

std::unique_ptr<EngineSession> RuntimeEngine::start(std::span<const TokenId> prompt,
                                                    std::int64_t max_tokens) const {
  NEEDLE_CHECK(!prompt.empty(), "a prompt needs at least one token");
  NEEDLE_CHECK(std::ssize(prompt) <= kMaxTokens && max_tokens >= 0 && max_tokens <= kMaxTokens,
               "a prompt of {} tokens and up to {} decoder tokens; each may be up to {}",
               prompt.size(), max_tokens, kMaxTokens);
  check_tokens(model_->config, prompt);
  return std::make_unique<RuntimeSession>(machine_, *model_,
                                          start_request(machine_, *model_, prompt, max_tokens));
}

std::vector<float> RuntimeEngine::embed(std::span<const TokenId> text) const {
  check_tokens(model_->config, text);
  return runtime::embed(machine_, *model_, text);
}

std::vector<float> RuntimeEngine::encode(std::span<const TokenId> tokens) const {
  NEEDLE_CHECK(!tokens.empty(), "encode needs at least one token");
  check_tokens(model_->config, tokens);
  const AlignedBuffer<float> states = runtime::encode(machine_, *model_, tokens);
  return {states.span().begin(), states.span().end()};
}

}  // namespace needle::runtime
