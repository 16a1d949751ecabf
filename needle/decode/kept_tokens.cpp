#include "needle/decode/kept_tokens.h"

#include <algorithm>
#include <functional>

namespace needle {
namespace {

constexpr std::size_t kSlots = 2048;
constexpr std::size_t kTextBytes = std::size_t{64} << 10;
constexpr std::size_t kIds = std::size_t{16} << 10;

}  // namespace

KeptTokens::KeptTokens() : slots_(kSlots) {
  text_.reserve(kTextBytes);
  ids_.reserve(kIds);
}

// Where `text` is, or the free one where it belongs.
std::size_t KeptTokens::slot_of(std::string_view text) const {
  std::size_t slot = std::hash<std::string_view>()(text) % kSlots;
  const auto holds_another = [&](const Entry& entry) {
    return entry.text_size > 0 &&
           std::string_view(text_.data() + entry.text_begin, entry.text_size) != text;
  };
  while (holds_another(slots_[slot])) {
    slot = (slot + 1) % kSlots;
  }
  return slot;
}

bool KeptTokens::find(std::string_view text, std::vector<TokenId>& ids) const {
  const std::lock_guard lock(mutex_);
  const Entry& entry = slots_[slot_of(text)];
  if (entry.text_size == 0) {
    return false;
  }
  ids.assign(ids_.begin() + entry.ids_begin, ids_.begin() + entry.ids_begin + entry.ids_size);
  return true;
}

void KeptTokens::keep(std::string_view text, const std::vector<TokenId>& ids) {
  if (text.empty() || text.size() > kTextBytes || ids.size() > kIds) {
    return;
  }
  const std::lock_guard lock(mutex_);
  if (count_ >= kSlots / 2 || text_.size() + text.size() > kTextBytes ||
      ids_.size() + ids.size() > kIds) {
    std::ranges::fill(slots_, Entry{});
    count_ = 0;
    text_.clear();
    ids_.clear();
  }
  Entry& entry = slots_[slot_of(text)];
  if (entry.text_size > 0) {
    return;  // another thread was faster
  }
  entry = {.text_begin = static_cast<std::uint32_t>(text_.size()),
           .text_size = static_cast<std::uint32_t>(text.size()),
           .ids_begin = static_cast<std::uint32_t>(ids_.size()),
           .ids_size = static_cast<std::uint32_t>(ids.size())};
  text_.insert(text_.end(), text.begin(), text.end());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++count_;
}

void KeptSets::make_room(std::size_t numbers, std::int64_t vocab_size) {
  place_.assign(numbers, -1);
  room_ = std::min(numbers, kMostSets);
  words_of_set_ = TokenSet(vocab_size).words().size();
  words_ = std::make_unique_for_overwrite<std::uint64_t[]>(room_ * words_of_set_);
}

bool KeptSets::find(std::size_t number, TokenSet& set) const {
  const std::lock_guard lock(mutex_);
  if (place_[number] < 0) {
    return false;
  }
  const std::size_t at = static_cast<std::size_t>(place_[number]) * words_of_set_;
  std::copy_n(words_.get() + at, words_of_set_, set.words().begin());
  return true;
}

void KeptSets::keep(std::size_t number, const TokenSet& set) {
  const std::lock_guard lock(mutex_);
  if (place_[number] >= 0) {
    return;  // another thread was faster
  }
  if (count_ == room_) {
    std::ranges::fill(place_, -1);
    count_ = 0;
  }
  std::ranges::copy(set.words(), words_.get() + count_ * words_of_set_);
  place_[number] = static_cast<std::int32_t>(count_++);
}

}  // namespace needle
