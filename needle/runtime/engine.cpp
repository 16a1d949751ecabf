#include "needle/runtime/engine.h"

#include <algorithm>
#include <utility>

#include "needle/core/error.h"
#include "needle/runtime/decoder.h"
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

// Tokens in one pass: with more, the rows' buffers would leave the caches.
constexpr std::int64_t kRowsAtOnce = 24;

class RuntimeSession final : public EngineSession {
 public:
  RuntimeSession(const Machine& machine, const Model& model, std::unique_ptr<Request> request)
      : machine_(machine),
        model_(model),
        request_(std::move(request)),
        rows_(static_cast<std::size_t>(
            std::clamp<std::int64_t>(request_->max_tokens, 1, kRowsAtOnce))),
        buffers_(machine, model, std::ssize(rows_), 1,
                 std::max(request_->prompt_tokens, request_->max_tokens)) {}

  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet* wanted) override {
    NEEDLE_CHECK(!tokens.empty(), "feed needs at least one token");
    NEEDLE_CHECK(wanted == nullptr || wanted->vocab_size() == model_.config.vocab_size,
                 "a set over {} tokens; the vocabulary has {}", wanted->vocab_size(),
                 model_.config.vocab_size);
    check_tokens(model_.config, tokens);
    NEEDLE_CHECK(std::ssize(tokens) <= request_->max_tokens - request_->position,
                 "the session was started for {} decoder tokens", request_->max_tokens);
    while (!tokens.empty()) {
      const std::size_t count = std::min(tokens.size(), rows_.size());
      for (std::size_t i = 0; i < count; ++i) {
        rows_[i] = {.request = request_.get(),
                    .position = request_->position++,
                    .token = tokens[i],
                    .want_logits = i + 1 == tokens.size(),
                    .wanted = wanted};
      }
      decode(machine_, model_, std::span(rows_).first(count), buffers_);
      tokens = tokens.subspan(count);
    }
    return buffers_.logits(0);
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
  std::vector<DecoderRow> rows_;
  DecoderBuffers buffers_;
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
