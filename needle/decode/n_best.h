// The most probable answers, not only the greedy one.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "needle/decode/token_loop.h"

namespace needle {

struct NBestOptions {
  std::int64_t count = 3;
  std::int64_t max_gen_len = 512;
  std::int64_t max_expansions = 0;  // ways followed to their end at most; 0: four times `count`
  std::function<bool()> cancelled;  // asked at every token; true ends the search
};

struct ScoredTokens {
  std::vector<TokenId> ids;  // eos left out
  StopReason stop = StopReason::kEos;
  double log_probability = 0;  // among what the constraint allowed
};

struct NBest {
  std::vector<ScoredTokens> answers;  // best first; at most `count`
  // True if no answer can be more probable than these.
  bool exact = false;
  bool cancelled = false;  // the answers are those found before
  std::int64_t expansions = 0;
};

// Best-first: the greedy answer, then again and again the most probable way off the answers seen so
// far, followed greedily to its end. Chosen over a beam of fixed width: a beam asks the model for
// every way at every token, this asks once a token of each answer, and knows when it is done since
// a beginning is at least as probable as what it leads to. The session is rewound to what two
// answers share. `constraint` must not have accepted anything; nullptr: everything may follow.
NBest n_best_tokens(EngineSession& session, const Constraint* constraint,
                    const NBestOptions& options);

}  // namespace needle
