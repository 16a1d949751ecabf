#include "needle/decode/grammar.h"

#include <utility>

namespace needle {
namespace {

constexpr std::size_t kMostEncoded = 4096;
constexpr std::size_t kMostInside = 4096;  // kilobytes of cached sets, about

}  // namespace

std::shared_ptr<const TokenSet> Grammar::inside(std::int32_t automaton, std::int32_t state) const {
  if (automaton == kAnything) {
    return {trie_, &trie_->inside_any_string()};  // owned by the trie
  }
  const std::lock_guard lock(inside_mutex_);
  const auto found = inside_.find({automaton, state});
  if (found != inside_.end()) {
    return found->second;
  }
  if (inside_.size() >= kMostInside) {
    inside_.clear();
  }
  auto set =
      std::make_shared<const TokenSet>(trie_->inside_string(this->automaton(automaton), state));
  return inside_.emplace(std::pair(automaton, state), std::move(set)).first->second;
}

std::shared_ptr<const std::vector<TokenId>> Grammar::encoded(const Tokenizer& tokenizer,
                                                             const std::string& text) const {
  {
    const std::lock_guard lock(encoded_mutex_);
    if (const auto found = encoded_.find(text); found != encoded_.end()) {
      return found->second;
    }
  }
  auto ids =
      std::make_shared<const std::vector<TokenId>>(tokenizer.encode(text, SpecialText::kSpecial));
  const std::lock_guard lock(encoded_mutex_);
  if (encoded_.size() >= kMostEncoded) {
    encoded_.clear();
  }
  return encoded_.emplace(text, std::move(ids)).first->second;
}

}  // namespace needle
