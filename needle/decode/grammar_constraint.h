// A compiled grammar as a constraint of the token loop: the tokens that keep an answer valid and
// still let it end inside the budget, and the runs of tokens that leave no choice.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/decode/constraint.h"
#include "needle/decode/grammar.h"
#include "needle/decode/grammar_machine.h"
#include "needle/text/tokenizer.h"

namespace needle {

// One answer: <tool_call>, then the grammar's text, then eos. Any way through allowed() gives text
// that is valid, and whole whenever the budget was at least min_tokens() at the begin. The
// tokens of answers of usual length allocate nothing. Not thread-safe, nor beside its clones, which
// share the grammar, what is grounded and an encoder.
class GrammarConstraint : public Constraint {
 public:
  // `query`: what grounded values must stand in; may be empty. Throws Error where `limits` ask for
  // calls that the tools do not have.
  GrammarConstraint(std::shared_ptr<const Grammar> grammar, Tokenizer tokenizer,
                    const CallLimits& limits = {}, std::string_view query = {});

  // Budgets below this may cut the answer off: tokens of the shortest answer, at least, without
  // eos.
  std::int64_t min_tokens() const;

  const TokenSet* allowed(std::int64_t tokens_left) override;
  std::span<const TokenId> forced(std::int64_t tokens_left) override;
  void accept(TokenId token) override;
  std::unique_ptr<Constraint> clone() const override;

  bool is_whole() const { return started_ && machine_.may_end(threads_); }

 private:
  using Threads = GrammarMachine::Threads;

  struct Walk {
    std::int64_t tokens_left = 0;           // behind the token that the walk looks for
    bool only_quotes = false;               // only tokens that hold a quote
    std::vector<TokenId>* found = nullptr;  // instead of allowed_; the walk ends when it is full
  };
  void walk(const TokenTrie::Node& node, std::size_t depth, const Walk& how);
  Threads& threads_at(std::size_t depth);
  void reserve();
  void follow_forced_text();
  void find_continuations();
  bool spell(std::span<const TokenId> tail);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<TokenEncoder> encoder_;
  GrammarMachine machine_;
  Threads threads_;
  bool started_ = false;         // <tool_call> came
  std::vector<TokenId> recent_;  // the last tokens: how a text goes on depends on them
  TokenSet allowed_;
  std::vector<TokenId> forced_;
  std::vector<Threads> by_depth_;  // of walk()
  // Of one call of forced() or accept(), kept so that they allocate once.
  Threads next_;
  Threads behind_;
  std::string text_;
  std::string whole_;
  std::string spelled_;
  std::vector<TokenId> whole_ids_;
  std::vector<TokenId> spelled_ids_;
  std::vector<TokenId> found_;
  std::vector<std::string> continuations_;
  std::size_t continuation_count_ = 0;
};

}  // namespace needle
