#include "needle/decode/grammar.h"

#include <utility>

#include "needle/decode/string_reader.h"

namespace needle {
namespace {

// Walks the trie with a string automaton; tokens that end the string are left to the machine.
class InsideWalk {
 public:
  InsideWalk(const TokenTrie& trie, const TextAutomaton& automaton, TokenSet& found)
      : trie_(trie), automaton_(automaton), found_(found) {}

  void walk(const TokenTrie::Node& node, const StringReader& reader, std::int32_t state) {
    for (const TokenTrie::Node& child : trie_.children(node)) {
      StringReader next = reader;
      std::uint32_t code_point = 0;
      std::int32_t to = state;
      const string_reader::Event event = string_reader::advance(next, child.byte, code_point);
      if (event == string_reader::Event::kCharacter) {
        to = automaton_.advance(state, code_point);
      } else if (event != string_reader::Event::kInside || !is_possible(next, state)) {
        continue;
      }
      if (to < 0) {
        continue;
      }
      if (child.token >= 0) {
        found_.insert(child.token);
      }
      walk(child, next, to);
    }
  }

 private:
  bool is_possible(const StringReader& reader, std::int32_t state) const {
    for (const string_reader::Interval& interval : string_reader::reach(reader)) {
      if (!interval.empty() && automaton_.bytes_behind(state, interval.first, interval.last) >= 0) {
        return true;
      }
    }
    return false;
  }

  const TokenTrie& trie_;
  const TextAutomaton& automaton_;
  TokenSet& found_;
};

constexpr std::size_t kMostInside = 4096;  // kilobytes of cached sets, about

}  // namespace

std::shared_ptr<const TokenSet> Grammar::inside(std::int32_t automaton, std::int32_t state) const {
  const std::lock_guard lock(inside_mutex_);
  const auto found = inside_.find({automaton, state});
  if (found != inside_.end()) {
    return found->second;
  }
  if (inside_.size() >= kMostInside) {
    inside_.clear();
  }
  auto set = std::make_shared<TokenSet>(trie_->vocab_size());
  InsideWalk(*trie_, this->automaton(automaton), *set)
      .walk(trie_->node(TokenTrie::kRoot), {}, state);
  return inside_.emplace(std::pair(automaton, state), std::move(set)).first->second;
}

}  // namespace needle
