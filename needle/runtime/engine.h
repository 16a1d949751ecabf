// decode/engine over the runtime's model: float32 activations, a KV cache, cross keys and values
// computed once a prompt. Links nothing but the standard library and threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "needle/decode/engine.h"
#include "needle/runtime/layers.h"
#include "needle/runtime/model.h"

namespace needle::runtime {

struct EngineOptions {
  std::size_t threads = 1;           // the calling one included; 0: one per core
  const Kernels* kernels = nullptr;  // nullptr: select_kernels()
};

// The same results for any number of threads. `start`, `feed`, `embed` and `encode` are safe from
// several threads (they take turns where they use the pool). A session's step() does not allocate.
// A token outside the vocabulary, an empty prompt and a step beyond `max_tokens` throw
// needle::Error.
class RuntimeEngine final : public Engine {
 public:
  explicit RuntimeEngine(std::shared_ptr<const Model> model, const EngineOptions& options = {});
  ~RuntimeEngine() override;

  std::int64_t vocab_size() const override;
  std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                       std::int64_t max_tokens) const override;
  // In passes of up to 24 tokens: matrices are read once a pass, for all its tokens. A session's
  // bits do not depend on the company. Calls take turns. The first call allocates, later ones only
  // if prompts have become longer. An error leaves all sessions as they were.
  void feed(std::span<SessionFeed> feeds) const override;
  // Asks `stop` between the encoder's layers and the cross-attention's.
  std::unique_ptr<EngineSession> start_unless(const std::function<bool()>& stop,
                                              std::span<const TokenId> prompt,
                                              std::int64_t max_tokens) const override;
  std::vector<float> embed(std::span<const TokenId> text) const override;

  // The encoder's output after its final norm, [T, d].
  std::vector<float> encode(std::span<const TokenId> tokens) const;
  const Model& model() const { return *model_; }
  const char* kernel_name() const { return machine_.kernels->name; }

 private:
  std::shared_ptr<const Model> model_;
  std::unique_ptr<ThreadPool> pool_;
  Machine machine_;
  struct Batch;
  void run_batch() const;
  std::unique_ptr<Batch> batch_;
};

}  // namespace needle::runtime
