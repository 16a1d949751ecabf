// An engine that says what it is told: the token loop can be tested without a network.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "needle/decode/engine.h"

namespace needle::test {

// Prefers the tokens of a script in turn, then eos; every other logit is below, in order of id.
class ScriptedSession : public EngineSession {
 public:
  ScriptedSession(std::vector<TokenId> script, std::int64_t vocab_size)
      : script_(std::move(script)), logits_(static_cast<std::size_t>(vocab_size)) {}

  std::span<const float> feed(std::span<const TokenId> tokens,
                              const TokenSet* /*wanted*/) override {
    fed_.insert(fed_.end(), tokens.begin(), tokens.end());
    for (std::size_t id = 0; id < logits_.size(); ++id) {
      logits_[id] = -static_cast<float>(id) / static_cast<float>(logits_.size());
    }
    const std::size_t turn = fed_.size() - 1;
    logits_[static_cast<std::size_t>(turn < script_.size() ? script_[turn] : kEosId)] = 20;
    return logits_;
  }
  std::int64_t position() const override { return static_cast<std::int64_t>(fed_.size()); }
  void rewind(std::int64_t position) override { fed_.resize(static_cast<std::size_t>(position)); }
  const std::vector<TokenId>& fed() const { return fed_; }

 private:
  std::vector<TokenId> script_;
  std::vector<float> logits_;
  std::vector<TokenId> fed_;
};

class ScriptedEngine : public Engine {
 public:
  using Script = std::function<std::vector<TokenId>(std::span<const TokenId> prompt)>;
  using Embed = std::function<std::vector<float>(std::span<const TokenId> text)>;

  ScriptedEngine(std::int64_t vocab_size, Script script, Embed embed = {})
      : vocab_size_(vocab_size), script_(std::move(script)), embed_(std::move(embed)) {}

  std::int64_t vocab_size() const override { return vocab_size_; }
  std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                       std::int64_t /*max_tokens*/) const override {
    return std::make_unique<ScriptedSession>(script_(prompt), vocab_size_);
  }
  std::vector<float> embed(std::span<const TokenId> text) const override { return embed_(text); }

 private:
  std::int64_t vocab_size_;
  Script script_;
  Embed embed_;
};

}  // namespace needle::test
