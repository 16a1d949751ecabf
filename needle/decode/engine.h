// What a token loop needs of a network: implemented over LibTorch (model/model_engine) and over the
// mapped weights file (runtime/engine). Evaluation compares the two by swapping one argument.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "needle/text/special_tokens.h"

namespace needle {

// One request: an encoded prompt and the decoder's state so far. Used by one thread at a time; must
// not outlive its engine.
class EngineSession {
 public:
  virtual ~EngineSession() = default;
  // Feeds one decoder token; returns the logits of the next, float32 [V], valid until the next
  // call.
  virtual std::span<const float> step(TokenId token) = 0;
  virtual std::int64_t position() const = 0;  // decoder tokens fed so far
};

// Immutable once made; `start` and `embed` are safe from several threads.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::int64_t vocab_size() const = 0;
  // Encodes the prompt (1..any length; padding ids are masked). `max_tokens` bounds the decoder
  // tokens of the session.
  virtual std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                               std::int64_t max_tokens) const = 0;
  // Contrastive embedding of one text, unit length [contrastive_dim]. An empty text embeds like
  // padding.
  virtual std::vector<float> embed(std::span<const TokenId> text) const = 0;
};

}  // namespace needle
