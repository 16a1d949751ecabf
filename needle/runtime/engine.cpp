#include "needle/runtime/engine.h"

#include <algorithm>
#include <array>
#include <mutex>
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

  // Throws needle::Error if `feed` would.
  void check(std::span<const TokenId> tokens, const TokenSet* wanted) const {
    NEEDLE_CHECK(!tokens.empty(), "feed needs at least one token");
    NEEDLE_CHECK(wanted == nullptr || wanted->vocab_size() == model_.config.vocab_size,
                 "a set over {} tokens; the vocabulary has {}", wanted->vocab_size(),
                 model_.config.vocab_size);
    check_tokens(model_.config, tokens);
    NEEDLE_CHECK(std::ssize(tokens) <= request_->max_tokens - request_->position,
                 "the session was started for {} decoder tokens", request_->max_tokens);
  }

  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet* wanted) override {
    check(tokens, wanted);
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

  // For passes of several sessions.
  const Model& model() const { return model_; }
  Request& request() { return *request_; }
  std::span<const float> keep_logits(std::span<const float> logits) {
    buffers_.set_logits(0, logits);
    return buffers_.logits(0);
  }

 private:
  const Machine& machine_;
  const Model& model_;
  std::unique_ptr<Request> request_;
  std::vector<DecoderRow> rows_;
  DecoderBuffers buffers_;
};

}  // namespace

// Room for a pass of several sessions' tokens.
struct RuntimeEngine::Batch {
  std::mutex turn;
  std::int64_t attended = 0;  // what `buffers` are made for
  std::unique_ptr<DecoderBuffers> buffers;
  std::array<DecoderRow, kRowsAtOnce> rows;
  std::array<SessionFeed*, kRowsAtOnce> ending{};  // whose last token is in the pass, in order
  std::size_t row_count = 0;
  std::size_t ending_count = 0;
};

RuntimeEngine::RuntimeEngine(std::shared_ptr<const Model> model, const EngineOptions& options)
    : model_(std::move(model)),
      pool_(options.threads == 1 ? nullptr : std::make_unique<ThreadPool>(options.threads)),
      machine_{.kernels = options.kernels != nullptr ? options.kernels : &select_kernels(),
               .pool = pool_.get()},
      batch_(std::make_unique<Batch>()) {
  NEEDLE_CHECK(model_->numerics == Numerics::kFloat || machine_.kernels->multiply_int4 != nullptr,
               "the kernels {} have no integer products; load the model with Numerics::kFloat",
               machine_.kernels->name);
}

RuntimeEngine::~RuntimeEngine() = default;

std::int64_t RuntimeEngine::vocab_size() const { return model_->config.vocab_size; }

std::unique_ptr<EngineSession> RuntimeEngine::start(std::span<const TokenId> prompt,
                                                    std::int64_t max_tokens) const {
  return start_unless({}, prompt, max_tokens);
}

std::unique_ptr<EngineSession> RuntimeEngine::start_unless(const std::function<bool()>& stop,
                                                           std::span<const TokenId> prompt,
                                                           std::int64_t max_tokens) const {
  NEEDLE_CHECK(!prompt.empty(), "a prompt needs at least one token");
  NEEDLE_CHECK(std::ssize(prompt) <= kMaxTokens && max_tokens >= 0 && max_tokens <= kMaxTokens,
               "a prompt of {} tokens and up to {} decoder tokens; each may be up to {}",
               prompt.size(), max_tokens, kMaxTokens);
  check_tokens(model_->config, prompt);
  auto request = start_request(machine_, *model_, prompt, max_tokens, stop);
  return request == nullptr
             ? nullptr
             : std::make_unique<RuntimeSession>(machine_, *model_, std::move(request));
}

void RuntimeEngine::feed(std::span<SessionFeed> feeds) const {
  std::int64_t attended = 0;
  for (std::size_t i = 0; i < feeds.size(); ++i) {
    auto* const session = dynamic_cast<RuntimeSession*>(feeds[i].session);
    NEEDLE_CHECK(session != nullptr && &session->model() == model_.get(),
                 "session {} of {} is not of this engine", i, feeds.size());
    NEEDLE_CHECK(std::ranges::none_of(
                     feeds.first(i),
                     [&](const SessionFeed& one) { return one.session == feeds[i].session; }),
                 "session {} of {} is there twice", i, feeds.size());
    session->check(feeds[i].tokens, feeds[i].wanted);
    attended =
        std::max({attended, session->request().prompt_tokens, session->request().max_tokens});
  }
  const std::lock_guard lock(batch_->turn);
  if (batch_->buffers == nullptr || attended > batch_->attended) {
    batch_->buffers =
        std::make_unique<DecoderBuffers>(machine_, *model_, kRowsAtOnce, kRowsAtOnce, attended);
    batch_->attended = attended;
  }
  for (SessionFeed& one : feeds) {
    Request& request = static_cast<RuntimeSession*>(one.session)->request();
    for (std::size_t i = 0; i < one.tokens.size(); ++i) {
      const bool last = i + 1 == one.tokens.size();
      batch_->rows[batch_->row_count++] = {.request = &request,
                                           .position = request.position++,
                                           .token = one.tokens[i],
                                           .want_logits = last,
                                           .wanted = one.wanted};
      if (last) {
        batch_->ending[batch_->ending_count++] = &one;
      }
      if (batch_->row_count == batch_->rows.size()) {
        run_batch();
      }
    }
  }
  if (batch_->row_count > 0) {
    run_batch();
  }
}

void RuntimeEngine::run_batch() const {
  decode(machine_, *model_, std::span(batch_->rows).first(batch_->row_count), *batch_->buffers);
  for (std::size_t i = 0; i < batch_->ending_count; ++i) {
    SessionFeed& one = *batch_->ending[i];
    one.logits = static_cast<RuntimeSession*>(one.session)
                     ->keep_logits(batch_->buffers->logits(static_cast<std::int64_t>(i)));
  }
  batch_->row_count = 0;
  batch_->ending_count = 0;
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
