#include "needle/decode/grammar.h"

#include <algorithm>

namespace needle {

void Grammar::make_room() {
  std::size_t states = 0;
  for (std::size_t i = 0; i < automata_.size(); ++i) {
    first_state_.push_back(states);
    states += i == kAnything ? 0 : automata_[i].size();
  }
  inside_.make_room(states, trie_->vocab_size());
}

void Grammar::inside(std::int32_t automaton, std::int32_t state, TokenSet& tokens) const {
  if (automaton == kAnything) {
    std::ranges::copy(trie_->inside_any_string().words(), tokens.words().begin());
    return;
  }
  const std::size_t number = at(first_state_, automaton) + static_cast<std::size_t>(state);
  if (!inside_.find(number, tokens)) {
    trie_->inside_string(this->automaton(automaton), state, tokens);
    inside_.keep(number, tokens);
  }
}

void Grammar::encode(TokenEncoder& encoder, std::string_view text,
                     std::vector<TokenId>& ids) const {
  if (!encoded_.find(text, ids)) {
    const std::span<const TokenId> fresh = encoder.encode(text, SpecialText::kSpecial);
    ids.assign(fresh.begin(), fresh.end());
    encoded_.keep(text, ids);
  }
}

}  // namespace needle
