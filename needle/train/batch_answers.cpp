#include "needle/train/batch_answers.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/model/model_engine.h"

namespace needle {
namespace {

using Tokens = std::vector<TokenId>;

// Says the tokens that it was given, then eos. It stands in for the model, so that text goes into
// prompts and out of tokens exactly as it does when a request is answered alone.
class ScriptedSession final : public EngineSession {
 public:
  ScriptedSession(const Tokens* script, std::int64_t vocab_size)
      : script_(script), logits_(static_cast<std::size_t>(vocab_size), 0.0F) {}

  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet*) override {
    logits_[said_] = 0.0F;
    position_ += std::ssize(tokens);
    const auto next = static_cast<std::size_t>(position_ - 1);  // the first token fed is the start
    const bool over = script_ == nullptr || next >= script_->size();
    said_ = static_cast<std::size_t>(over ? kEosId : (*script_)[next]);
    logits_[said_] = 1.0F;
    return logits_;
  }
  std::int64_t position() const override { return position_; }
  void rewind(std::int64_t position) override { position_ = position; }

 private:
  const Tokens* script_;
  std::vector<float> logits_;
  std::size_t said_ = 0;
  std::int64_t position_ = 0;
};

class ScriptedEngine final : public Engine {
 public:
  explicit ScriptedEngine(std::int64_t vocab_size) : vocab_size_(vocab_size) {}

  std::map<Tokens, Tokens> scripts;  // by prompt; a prompt without one says nothing

  std::int64_t vocab_size() const override { return vocab_size_; }
  std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                       std::int64_t) const override {
    const auto found = scripts.find(Tokens(prompt.begin(), prompt.end()));
    return std::make_unique<ScriptedSession>(found == scripts.end() ? nullptr : &found->second,
                                             vocab_size_);
  }
  std::vector<float> embed(std::span<const TokenId>) const override {
    throw Error("a script has no embeddings");
  }

 private:
  std::int64_t vocab_size_;
};

CallRequest request_of(const EvalCase& eval_case, std::int64_t max_gen_len) {
  return {.query = eval_case.query,
          .tools_json = eval_case.tools,
          .max_gen_len = max_gen_len,
          .constrain = Constrain::kNone};
}

}  // namespace

Predictions predict_calls_in_batches(Needle& model, const Tokenizer& tokenizer,
                                     const PromptConfig& prompt, std::span<const EvalCase> cases,
                                     const BatchAnswerOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ScriptedEngine engine(model->config().vocab_size);
  const FunctionCaller caller(engine, tokenizer, prompt);
  std::vector<Tokens> prompts;
  for (const EvalCase& eval_case : cases) {
    prompts.push_back(caller.call(request_of(eval_case, options.max_gen_len)).prompt_ids);
  }
  const std::int64_t budget =
      std::max<std::int64_t>(1, std::min(options.max_gen_len, prompt.max_dec_len));
  const std::vector<GeneratedTokens> generated = generate_batch(
      model, prompts, {.max_gen_len = budget, .batch_rows = options.batch_rows, .constraints = {}});
  for (std::size_t i = 0; i < cases.size(); ++i) {
    engine.scripts[prompts[i]] = generated[i].ids;
  }
  Predictions predictions;
  for (const EvalCase& eval_case : cases) {
    CallResult result = caller.call(request_of(eval_case, options.max_gen_len));
    predictions.items.push_back({.text = std::move(result.text),
                                 .ids = std::move(result.ids),
                                 .stop = result.stop,
                                 .cut_tokens = result.cut_query_tokens + result.cut_tools_tokens});
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  predictions.wall_seconds = elapsed.count();
  return predictions;
}

}  // namespace needle
