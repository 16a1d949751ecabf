// What a token loop needs of a network: implemented over LibTorch (model/model_engine) and over the
// mapped weights file (runtime/engine). Evaluation compares the two by swapping one argument.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "needle/decode/token_set.h"
#include "needle/text/special_tokens.h"

namespace needle {

// One request: an encoded prompt and the decoder's state so far. Used by one thread at a time; must
// not outlive its engine.
class EngineSession {
 public:
  virtual ~EngineSession() = default;
  // Feeds decoder tokens (at least one) in one pass; returns the logits of the token after the last
  // of them, float32 [V], valid until the next call. With `wanted` only its members' logits are
  // defined, so that an engine need not compute the rest. The values do not depend on how tokens
  // are grouped into calls beyond float rounding.
  virtual std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet* wanted) = 0;
  std::span<const float> step(TokenId token) { return feed({&token, 1}, nullptr); }

  virtual std::int64_t position() const = 0;  // decoder tokens fed so far
  // Forgets all tokens from `position` on, which is at most position(): another way can be tried.
  virtual void rewind(std::int64_t position) = 0;
};

// What a session is to be fed in a pass of several, and what comes of it.
struct SessionFeed {
  EngineSession* session = nullptr;
  std::span<const TokenId> tokens;     // at least one
  const TokenSet* wanted = nullptr;    // as in EngineSession::feed
  std::span<const float> logits = {};  // out: float32 [V], valid until the session's next call
};

// Immutable once made; `start`, `feed` and `embed` are safe from several threads.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::int64_t vocab_size() const = 0;
  // Encodes the prompt (1..any length; padding ids are masked). `max_tokens` bounds the decoder
  // tokens of the session.
  virtual std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                               std::int64_t max_tokens) const = 0;
  // Feeds several sessions of this engine, each at most once and none in use elsewhere, as if one
  // after the other; an engine may do it in one pass.
  virtual void feed(std::span<SessionFeed> feeds) const {
    for (SessionFeed& one : feeds) {
      one.logits = one.session->feed(one.tokens, one.wanted);
    }
  }
  // As start, given up when `stop` says so: nullptr. An engine that reads a prompt for long asks it
  // now and then, here once before.
  virtual std::unique_ptr<EngineSession> start_unless(const std::function<bool()>& stop,
                                                      std::span<const TokenId> prompt,
                                                      std::int64_t max_tokens) const {
    return stop && stop() ? nullptr : start(prompt, max_tokens);
  }
  // Contrastive embedding of one text, unit length [contrastive_dim]. An empty text embeds like
  // padding.
  virtual std::vector<float> embed(std::span<const TokenId> text) const = 0;
};

}  // namespace needle
