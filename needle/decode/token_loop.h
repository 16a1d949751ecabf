// The one token loop: asks an engine for logits where a choice is left, and a constraint for what
// may follow.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/decode/constraint.h"
#include "needle/decode/engine.h"

namespace needle {

enum class StopReason { kEos, kMaxTokens, kCancelled };
inline constexpr EnumNames<StopReason, 3> kStopReasonNames{
    {{{StopReason::kEos, "eos"},
      {StopReason::kMaxTokens, "max_tokens"},
      {StopReason::kCancelled, "cancelled"}}}};

// What is kept of each step. The tokens are the same in every mode.
enum class StepDetail {
  kNone,        // nothing
  kConfidence,  // probabilities among the allowed tokens; forced tokens cost nothing
  kTrace,       // all logits of every step, forced ones too: slower, and tells what a mask cut off
};

struct TokenAlternative {
  TokenId id = 0;
  double log_probability = 0;  // among the allowed tokens; with kTrace among all
  bool allowed = true;
};

struct TokenStep {
  TokenId id = 0;  // eos is a step, too
  bool forced = false;
  std::int64_t allowed_tokens = 0;  // how many could follow; 1 if forced
  double log_probability = 0;       // of the token among the allowed ones; 0 if forced
  // kTrace: probability of all tokens that were not allowed. Near 1: the model wanted something
  // else, so that the probability above says little.
  std::optional<double> outside;
  // The most probable others, best first. kTrace: forbidden ones are among them.
  std::vector<TokenAlternative> alternatives;
};

struct GenerateOptions {
  std::int64_t max_gen_len = 512;    // at most max_gen_len - 1 tokens come out, as in the reference
  Constraint* constraint = nullptr;  // not owned
  std::function<bool(TokenId)> on_token;  // called for each token; false cancels

  StepDetail detail = StepDetail::kNone;
  std::int64_t alternatives = 0;  // kept of each step

  // The answer's first tokens, settled before the loop: not reported to on_token, without a step.
  // Those that the session was fed already (all but eos and position() - 1 of them) are not fed
  // again.
  std::span<const TokenId> prefix;
  // An answer whose probability is asked for, too (kConfidence, kTrace); see
  // watched_log_probability.
  std::span<const TokenId> watched;
};

struct GeneratedTokens {
  std::vector<TokenId> ids;  // eos left out
  StopReason stop = StopReason::kEos;
  std::int64_t forced_tokens = 0;  // of ids and eos: came without asking the model
  std::int64_t chosen_tokens = 0;  // of ids and eos: the model chose
  std::vector<TokenStep> steps;    // with a detail: one a token after the prefix
  // Of the tokens of `watched` up to the first that the answer has not, that one included: an upper
  // bound of the whole, and equal where the rest is forced.
  double watched_log_probability = 0;
};

// The most probable member of `allowed` (nullptr: of all), the lowest id on a tie; NaN never wins.
// Throws Error if nothing is allowed or none of the logits is a number.
TokenId best_token(std::span<const float> logits, const TokenSet* allowed);

// Greedy. The decoder starts from eos. Forced tokens are not asked for: they go to the engine with
// the next question, in one pass; where one token is allowed it counts as forced. Throws Error if
// every logit that counts is NaN. With StepDetail::kNone and no on_token a step does not allocate.
GeneratedTokens generate_tokens(EngineSession& session, const GenerateOptions& options);

// One of several that go on together. Neither is owned.
struct GenerateRequest {
  EngineSession* session = nullptr;
  const GenerateOptions* options = nullptr;
};

// Several sessions of `engine`, each once: in every pass the engine is fed what all that still ask
// need, so that it reads its weights once for all. Results in the order of the requests, each as
// generate_tokens would give it alone. What an engine or a callback throws ends all of them.
std::vector<GeneratedTokens> generate_batch(const Engine& engine,
                                            std::span<const GenerateRequest> requests);

}  // namespace needle
