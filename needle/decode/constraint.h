// What may follow in an answer: the seam between the token loop and every grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "needle/decode/token_set.h"

namespace needle {

// Follows one answer token by token. Not thread-safe.
class Constraint {
 public:
  virtual ~Constraint() = default;

  // Tokens that may follow when `tokens_left` more fit, eos included; nullptr: everything may. eos
  // is a member where the answer may end. Never empty. Valid until the next call.
  virtual const TokenSet* allowed(std::int64_t tokens_left) = 0;

  // Tokens that come next whatever the model says, in the spelling that the model was trained on.
  // Empty: the model must choose. The loop accepts them in turn. Valid until the next call.
  virtual std::span<const TokenId> forced(std::int64_t /*tokens_left*/) { return {}; }

  virtual void accept(TokenId token) = 0;

  // An independent copy in the same state: several ways on can be followed.
  virtual std::unique_ptr<Constraint> clone() const = 0;
};

}  // namespace needle
