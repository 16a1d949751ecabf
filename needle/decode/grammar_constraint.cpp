#include "needle/decode/grammar_constraint.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::size_t kMostForcedBytes = 4096;
constexpr std::size_t kUsualForcedBytes = 512;
constexpr std::size_t kRecentTokens = 3;
constexpr std::size_t kMostContinuations = 48;  // of a forced text, that are told apart

std::shared_ptr<GroundedValues> grounded_values(const Grammar& grammar, std::string_view query) {
  return grammar.has_grounded() ? std::make_shared<GroundedValues>(grammar, query) : nullptr;
}

}  // namespace

GrammarConstraint::GrammarConstraint(std::shared_ptr<const Grammar> grammar, Tokenizer tokenizer,
                                     const CallLimits& limits, std::string_view query)
    : grammar_(std::move(grammar)),
      machine_(grammar_, limits, grounded_values(*grammar_, query)),
      threads_(machine_.start()),
      allowed_(grammar_->trie().vocab_size()),
      by_depth_(grammar_->trie().longest() + 2) {
  reserve();
  encoder_ = std::make_shared<TokenEncoder>(std::move(tokenizer), spelled_.capacity());
}

// Room for what answers need as a rule, so that their tokens allocate nothing.
void GrammarConstraint::reserve() {
  constexpr std::size_t kUsualThreads = 16;
  const std::size_t longest = grammar_->trie().longest();
  for (Threads* threads : {&threads_, &next_, &behind_}) {
    threads->reserve(kUsualThreads);
  }
  for (Threads& threads : by_depth_) {
    threads.reserve(kUsualThreads);
  }
  recent_.reserve(kRecentTokens);
  forced_.reserve(kUsualForcedBytes);
  found_.reserve(kMostContinuations + 2);
  text_.reserve(kUsualForcedBytes);
  whole_.reserve(kUsualForcedBytes + kToolCallPiece.size() + (kRecentTokens + 1) * longest);
  spelled_.reserve(whole_.capacity() + longest);
  whole_ids_.reserve(spelled_.capacity());
  spelled_ids_.reserve(spelled_.capacity());
  continuations_.resize(kMostContinuations + 1);
  for (std::string& continuation : continuations_) {
    continuation.reserve(longest);
  }
}

std::int64_t GrammarConstraint::min_tokens() const {
  return machine_.tokens_to_end(threads_) + (started_ ? 0 : 1);
}

std::unique_ptr<Constraint> GrammarConstraint::clone() const {
  return std::make_unique<GrammarConstraint>(*this);
}

void GrammarConstraint::accept(TokenId token) {
  if (!started_) {
    NEEDLE_CHECK(token == kToolCallId, "an answer begins with {}, got token {}", kToolCallPiece,
                 token);
    started_ = true;
    return;
  }
  const TokenTrie& trie = grammar_->trie();
  NEEDLE_CHECK(token >= 0 && token < trie.vocab_size() && !trie.text(token).empty(),
               "token {} adds nothing to an answer", token);
  for (const char byte : trie.text(token)) {
    machine_.step(threads_, static_cast<std::uint8_t>(byte), next_);
    threads_.swap(next_);
  }
  NEEDLE_CHECK(!threads_.empty(), "token {} does not fit the grammar here", token);
  if (recent_.size() == kRecentTokens) {
    recent_.erase(recent_.begin());
  }
  recent_.push_back(token);
}

const TokenSet* GrammarConstraint::allowed(std::int64_t tokens_left) {
  allowed_.clear();
  if (!started_) {
    allowed_.insert(kToolCallId);
    return &allowed_;
  }
  if (machine_.may_end(threads_)) {
    allowed_.insert(kEosId);
  }
  // Below what the shortest way needs nothing can be kept; then at least the text stays valid.
  const bool can_be_kept = tokens_left >= machine_.tokens_to_end(threads_);
  Walk how{.tokens_left = can_be_kept ? tokens_left - 1 : std::numeric_limits<std::int64_t>::max()};
  const auto place = machine_.string_place(threads_);
  const auto longest = static_cast<std::int64_t>(grammar_->trie().longest());
  if (place && (place->characters_left < 0 || place->characters_left >= longest) &&
      how.tokens_left >= place->most_tokens_to_end) {
    grammar_->inside(place->automaton, place->state, allowed_);
    how.only_quotes = true;
  }
  threads_at(0) = threads_;
  walk(grammar_->trie().node(TokenTrie::kRoot), 0, how);
  return &allowed_;
}

GrammarMachine::Threads& GrammarConstraint::threads_at(std::size_t depth) {
  return by_depth_[depth];
}

// All tokens below `node` that may follow.
void GrammarConstraint::walk(const TokenTrie::Node& node, std::size_t depth, const Walk& how) {
  for (const TokenTrie::Node& child : grammar_->trie().children(node)) {
    if (how.only_quotes && !child.has_quote_below) {
      continue;
    }
    const GrammarMachine::Mark before = machine_.mark();
    Threads& next = threads_at(depth + 1);
    machine_.step(threads_at(depth), child.byte, next);
    if (!next.empty()) {
      if (child.token >= 0 && machine_.tokens_to_end(next) <= how.tokens_left) {
        if (how.found == nullptr) {
          allowed_.insert(child.token);
        } else {
          how.found->push_back(child.token);
        }
      }
      walk(child, depth + 1, how);
    }
    machine_.release(before);
    if (how.found != nullptr && how.found->size() > kMostContinuations) {
      return;
    }
  }
}

std::span<const TokenId> GrammarConstraint::forced(std::int64_t /*tokens_left*/) {
  forced_.clear();
  if (!started_) {
    forced_.push_back(kToolCallId);
    return forced_;
  }
  if (threads_.size() == 1 && threads_[0] == GrammarMachine::kDone) {
    forced_.push_back(kEosId);
    return forced_;
  }
  const GrammarMachine::Mark before = machine_.mark();
  follow_forced_text();
  if (!text_.empty()) {
    find_continuations();
    for (std::size_t known = recent_.size() + 1; known-- > 0;) {
      if (spell(std::span(recent_).last(known))) {
        break;
      }
    }
  }
  machine_.release(before);
  return forced_;
}

// All that comes before the next choice, to text_; the threads there, to behind_.
void GrammarConstraint::follow_forced_text() {
  text_.clear();
  behind_ = threads_;
  while (text_.size() < kMostForcedBytes && !machine_.may_end(behind_)) {
    const NextByte only = machine_.next_byte(behind_);
    if (only.count != 1) {
      break;
    }
    machine_.step(behind_, only.byte, next_);
    if (next_.empty()) {
      break;
    }
    behind_.swap(next_);
    text_ += static_cast<char>(only.byte);
  }
}

// How text_ may go on inside a token that begins in it: what lies behind its end, the first
// continuation_count_ of continuations_; no more than all of these are told apart.
void GrammarConstraint::find_continuations() {
  const TokenTrie& trie = grammar_->trie();
  continuation_count_ = 0;
  threads_at(0) = behind_;
  for (std::size_t begin = text_.size() - std::min(text_.size(), trie.longest());
       begin < text_.size(); ++begin) {
    const TokenTrie::Node* at = &trie.node(TokenTrie::kRoot);
    for (std::size_t i = begin; i < text_.size() && at != nullptr; ++i) {
      at = trie.child(*at, static_cast<std::uint8_t>(text_[i]));
    }
    if (at == nullptr) {
      continue;
    }
    found_.clear();
    walk(*at, 0, {.tokens_left = std::numeric_limits<std::int64_t>::max(), .found = &found_});
    for (const TokenId token : found_) {
      const std::string_view rest = trie.text(token).substr(text_.size() - begin);
      const auto known = std::span(continuations_).first(continuation_count_);
      if (std::ranges::find(known, rest) != known.end()) {
        continue;
      }
      continuations_[continuation_count_++] = rest;
      if (continuation_count_ == continuations_.size()) {
        return;
      }
    }
  }
}

// The tokens of text_ as training saw them, to forced_: those of `tail` and this text together, as
// far as they are the same however it goes on. False if they do not begin with `tail`.
bool GrammarConstraint::spell(std::span<const TokenId> tail) {
  const TokenTrie& trie = grammar_->trie();
  whole_ = kToolCallPiece;  // nothing merges across it: what follows is as inside a text
  for (const TokenId token : tail) {
    whole_ += trie.text(token);
  }
  const std::size_t begin = whole_.size();
  whole_ += text_;
  const auto behind_marker = [](const std::vector<TokenId>& ids) {
    const auto marker = std::ranges::find(ids, kToolCallId);
    return marker == ids.end() ? std::span<const TokenId>() : std::span(marker + 1, ids.end());
  };
  grammar_->encode(*encoder_, whole_, whole_ids_);
  const std::span<const TokenId> ids = behind_marker(whole_ids_);
  if (ids.size() < tail.size() || !std::ranges::equal(tail, ids.first(tail.size()))) {
    return false;
  }
  const std::span<const TokenId> own = ids.subspan(tail.size());
  std::size_t at = begin;
  for (const TokenId id : own) {  // encoding may lose something (runs of spaces)
    const std::string_view piece = trie.text(id);
    if (piece.empty() || !std::string_view(whole_).substr(at).starts_with(piece)) {
      return false;
    }
    at += piece.size();
  }
  std::size_t same = own.size();
  if (continuation_count_ > kMostContinuations) {
    same -= std::min<std::size_t>(same, 1);
  }
  for (std::size_t i = 0; i < std::min(continuation_count_, kMostContinuations) && same > 0; ++i) {
    spelled_ = whole_;
    spelled_ += continuations_[i];
    grammar_->encode(*encoder_, spelled_, spelled_ids_);
    const std::span<const TokenId> other = behind_marker(spelled_ids_);
    std::size_t equal = 0;
    while (equal < same && tail.size() + equal < other.size() &&
           other[tail.size() + equal] == own[equal]) {
      ++equal;
    }
    same = equal;
  }
  forced_.assign(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(same));
  return true;
}

}  // namespace needle
