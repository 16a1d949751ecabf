#include "needle/model/model_engine.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "needle/core/error.h"
#include "needle/model/eval_scope.h"
#include "needle/model/tensor_view.h"

namespace needle {
namespace {

torch::Device device_of(const Needle& model) { return model->embedding->weight.device(); }

void check_ids(std::span<const TokenId> ids, std::int64_t vocab_size, std::string_view what) {
  for (const TokenId id : ids) {
    if (id < 0 || id >= vocab_size) {
      throw Error(
          format("{}: token {} is outside the model's vocabulary of {}; the tokenizer belongs to "
                 "another model",
                 what, id, vocab_size));
    }
  }
}

// Rows padded to the longest (at least one token): int64 [B, T] on the model's device.
torch::Tensor padded_rows(const Needle& model, std::span<const std::span<const TokenId>> rows,
                          std::string_view what) {
  std::size_t longest = 1;
  for (const auto& row : rows) {
    check_ids(row, model->config().vocab_size, what);
    longest = std::max(longest, row.size());
  }
  const auto shape = {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(longest)};
  auto tokens = torch::full(shape, model->config().pad_token_id, torch::kInt64);
  auto* data = tokens.data_ptr<std::int64_t>();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::copy(rows[i].begin(), rows[i].end(), data + i * longest);
  }
  return tokens.to(device_of(model));
}

DecoderState start_decoding(Needle& model, const torch::Tensor& prompts) {
  const auto allowed = padding_mask(prompts, model->config().pad_token_id);  // [B, 1, 1, T]
  const auto encoder_out = model->encode(prompts, allowed);                  // [B, T, d]
  const bool any_padding = !allowed.all().item<bool>();
  return model->decoder->start(encoder_out, any_padding ? allowed : torch::Tensor());
}

// One token a row, int64 [B] -> float32 logits [B, V] on the CPU.
torch::Tensor next_logits(Needle& model, const torch::Tensor& tokens, DecoderState& state) {
  const auto embedded = model->embedding(tokens.to(device_of(model)).unsqueeze(1),
                                         model->compute_dtype());  // [B, 1, d]
  return to_host(model->logits(model->decoder->step(embedded, state)).squeeze(1));
}

std::span<float> row_of(torch::Tensor& logits, std::int64_t row) {
  const auto width = logits.size(1);
  return {logits.data_ptr<float>() + row * width, static_cast<std::size_t>(width)};
}

class ModelSession final : public EngineSession {
 public:
  ModelSession(Needle model, std::span<const TokenId> prompt, std::int64_t max_tokens)
      : model_(std::move(model)), max_tokens_(max_tokens) {
    const torch::NoGradGuard no_grad;
    state_ = start_decoding(model_, padded_rows(model_, {{prompt}}, "prompt"));
  }

  std::span<const float> feed(std::span<const TokenId> tokens,
                              const TokenSet* /*wanted*/) override {
    NEEDLE_CHECK(!tokens.empty(), "feed needs at least one token");
    NEEDLE_CHECK(std::ssize(tokens) <= max_tokens_ - state_.position,
                 "a session of {} tokens is used up", max_tokens_);
    check_ids(tokens, model_->config().vocab_size, "decoder token");
    const torch::NoGradGuard no_grad;
    for (const TokenId token : tokens) {
      logits_ = next_logits(model_, torch::full({1}, token, torch::kInt64), state_);
    }
    return row_of(logits_, 0);
  }

  std::int64_t position() const override { return state_.position; }

  void rewind(std::int64_t position) override {
    NEEDLE_CHECK(position >= 0 && position <= state_.position,
                 "rewind to position {} of a session at {}", position, state_.position);
    state_.rewind(position);
  }

 private:
  Needle model_;
  std::int64_t max_tokens_;
  DecoderState state_;
  torch::Tensor logits_;  // [1, V], on the CPU
};

// The rows of one batch that still generate.
struct BatchRow {
  std::size_t prompt;  // index among all prompts
  TokenId last = kEosId;
  bool done = false;
};

void take_token(BatchRow& row, std::span<const float> logits, Constraint* constraint,
                std::int64_t max_gen_len, GeneratedTokens& generated) {
  const std::int64_t tokens_left = max_gen_len - 1 - std::ssize(generated.ids);
  row.last = best_token(logits, constraint != nullptr ? constraint->allowed(tokens_left) : nullptr);
  if (row.last == kEosId) {
    generated.stop = StopReason::kEos;
    row.done = true;
    return;
  }
  if (constraint != nullptr) {
    constraint->accept(row.last);
  }
  generated.ids.push_back(row.last);
}

// Goes on without the rows that are done.
void drop_done_rows(std::vector<BatchRow>& rows, DecoderState& state, torch::Device device) {
  std::vector<std::int64_t> kept;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].done) {
      kept.push_back(static_cast<std::int64_t>(i));
    }
  }
  std::erase_if(rows, [](const BatchRow& row) { return row.done; });
  state.keep_rows(torch::tensor(kept, torch::kInt64).to(device));
}

// Decodes the prompts named by `order` together.
void generate_rows(Needle& model, std::span<const std::vector<TokenId>> prompts,
                   std::span<const std::size_t> order, const BatchGenerateOptions& options,
                   std::vector<GeneratedTokens>& results) {
  std::vector<BatchRow> rows;
  std::vector<std::span<const TokenId>> texts;
  for (const std::size_t prompt : order) {
    rows.push_back({.prompt = prompt});
    texts.emplace_back(prompts[prompt]);
    results[prompt].stop = StopReason::kMaxTokens;
  }
  DecoderState state = start_decoding(model, padded_rows(model, texts, "prompt"));
  for (std::int64_t length = 1; length < options.max_gen_len; ++length) {
    auto last = torch::empty({static_cast<std::int64_t>(rows.size())}, torch::kInt64);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      last.data_ptr<std::int64_t>()[i] = rows[i].last;
    }
    auto logits = next_logits(model, last, state);  // [B, V]
    std::size_t active = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (!rows[i].done) {
        const std::size_t prompt = rows[i].prompt;
        Constraint* constraint =
            options.constraints.empty() ? nullptr : options.constraints[prompt];
        take_token(rows[i], row_of(logits, static_cast<std::int64_t>(i)), constraint,
                   options.max_gen_len, results[prompt]);
        active += rows[i].done ? 0 : 1;
      }
    }
    if (active == 0) {
      return;
    }
    if (2 * active <= rows.size()) {  // copying the caches pays once half of the rows are idle
      drop_done_rows(rows, state, device_of(model));
    }
  }
}

// Indices in ascending order of length: rows of one batch then need little padding.
std::vector<std::size_t> by_length(std::span<const std::vector<TokenId>> texts) {
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return texts[a].size() < texts[b].size(); });
  return order;
}

template <typename Function>
void for_each_batch(std::span<const std::size_t> order, std::int64_t batch_rows,
                    Function function) {
  NEEDLE_CHECK(batch_rows >= 1, "batch_rows is {}; it must be positive", batch_rows);
  const auto rows = static_cast<std::size_t>(batch_rows);
  for (std::size_t begin = 0; begin < order.size(); begin += rows) {
    function(order.subspan(begin, std::min(rows, order.size() - begin)));
  }
}

}  // namespace

ModelEngine::ModelEngine(Needle model)
    : model_(std::move(model)), was_training_(model_->is_training()) {
  model_->eval();
}

ModelEngine::~ModelEngine() { model_->train(was_training_); }

std::int64_t ModelEngine::vocab_size() const { return model_->config().vocab_size; }

std::unique_ptr<EngineSession> ModelEngine::start(std::span<const TokenId> prompt,
                                                  std::int64_t max_tokens) const {
  NEEDLE_CHECK(!prompt.empty(), "an empty prompt");
  return std::make_unique<ModelSession>(model_, prompt, max_tokens);
}

std::vector<float> ModelEngine::embed(std::span<const TokenId> text) const {
  const torch::NoGradGuard no_grad;
  Needle model = model_;
  auto embedding =
      to_host(model->embed(padded_rows(model, {{text}}, "text")));  // [1, contrastive_dim]
  const auto values = row_of(embedding, 0);
  return {values.begin(), values.end()};
}

std::vector<GeneratedTokens> generate_batch(Needle& model,
                                            std::span<const std::vector<TokenId>> prompts,
                                            const BatchGenerateOptions& options) {
  NEEDLE_CHECK(options.max_gen_len >= 1, "max_gen_len is {}; it must be positive",
               options.max_gen_len);
  NEEDLE_CHECK(options.constraints.empty() || options.constraints.size() == prompts.size(),
               "{} constraints for {} prompts", options.constraints.size(), prompts.size());
  const EvalScope evaluation(*model);
  std::vector<GeneratedTokens> results(prompts.size());
  const auto order = by_length(prompts);
  for_each_batch(order, options.batch_rows, [&](std::span<const std::size_t> batch) {
    generate_rows(model, prompts, batch, options, results);
  });
  return results;
}

std::vector<std::vector<float>> embed_batch(Needle& model,
                                            std::span<const std::vector<TokenId>> texts,
                                            std::int64_t batch_rows) {
  const EvalScope evaluation(*model);
  std::vector<std::vector<float>> results(texts.size());
  const auto order = by_length(texts);
  for_each_batch(order, batch_rows, [&](std::span<const std::size_t> batch) {
    std::vector<std::span<const TokenId>> rows;
    for (const std::size_t index : batch) {
      rows.emplace_back(texts[index]);
    }
    auto embeddings =
        to_host(model->embed(padded_rows(model, rows, "text")));  // [B, contrastive_dim]
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const auto values = row_of(embeddings, static_cast<std::int64_t>(i));
      results[batch[i]].assign(values.begin(), values.end());
    }
  });
  return results;
}

}  // namespace needle
