#include "needle/text/bpe.h"

#include <algorithm>
#include <functional>

#include "needle/calls/utf8.h"

namespace needle {
namespace {

constexpr std::uint32_t kSpaceMark = 0x2581;

}  // namespace

SymbolMatcher::Match SymbolMatcher::longest(std::string_view text, std::size_t position,
                                            bool special) const noexcept {
  Match match;
  if (vocabulary_->head->starts[static_cast<unsigned char>(text[position])] == 0) {
    return match;
  }
  std::uint32_t node = 0;
  for (std::size_t at = position; at < text.size(); ++at) {
    node = vocabulary_->children.find(node, static_cast<unsigned char>(text[at]));
    if (node == PairMap::kNone) {
      break;
    }
    const TokenId id = vocabulary_->symbol_at[node];
    if (id >= 0 && (special || (id != kToolCallId && id != kToolsId))) {
      match = {.id = id, .bytes = at + 1 - position};
    }
  }
  return match;
}

Bpe::Character Bpe::character_at(std::string_view text, std::size_t position) const noexcept {
  const auto byte = static_cast<unsigned char>(text[position]);
  if (byte < 0x80) {
    return {.index = vocabulary_->head->ascii[byte], .bytes = 1, .character_class = byte};
  }
  const std::uint32_t code_point = utf8_code_point_at(text, position);
  return {.index = vocabulary_->characters.find(0, code_point),
          .bytes = byte < 0xE0 ? 2U : (byte < 0xF0 ? 3U : 4U),
          .character_class = code_point == kSpaceMark ? kSpaceClass : kOtherClass};
}

Bpe::Merge Bpe::merge_of(SymbolIndex left, SymbolIndex right) const noexcept {
  const SymbolIndex merged = vocabulary_->merges.find(left, right);
  return merged == kUnknownSymbol ? Merge{}
                                  : Merge{.merged = merged, .rank = vocabulary_->ranks[merged]};
}

void Bpe::merge(Workspace& work) const {
  std::vector<Symbol>& segment = work.segment_;
  if (segment.size() < 2) {
    return;
  }
  for (std::size_t i = 0; i + 1 < segment.size(); ++i) {
    segment[i].with_next = merge_of(segment[i].index, segment[i + 1].index);
  }
  if (segment.size() > kScanLimit) {
    merge_with_heap(work);
    return;
  }
  while (true) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < segment.size(); ++i) {
      best = segment[i].with_next.rank < segment[best].with_next.rank ? i : best;
    }
    const Merge merge = segment[best].with_next;
    if (merge.rank == kNoMerge) {
      return;
    }
    segment[best].index = merge.merged;
    segment.erase(segment.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    segment[best].with_next = best + 1 < segment.size()
                                  ? merge_of(segment[best].index, segment[best + 1].index)
                                  : Merge{};
    if (best > 0) {
      segment[best - 1].with_next = merge_of(segment[best - 1].index, segment[best].index);
    }
  }
}

void Bpe::merge_with_heap(Workspace& work) const {
  std::vector<Symbol>& segment = work.segment_;
  std::vector<Pair>& pairs = work.pairs_;
  std::vector<std::uint32_t>& next = work.next_;
  std::vector<std::uint32_t>& previous = work.previous_;
  std::vector<bool>& joined = work.joined_;
  const auto size = static_cast<std::uint32_t>(segment.size());
  pairs.clear();
  next.resize(size);
  previous.resize(size);
  joined.assign(size, false);
  const auto offer = [&](std::uint32_t left) {
    if (const Merge& merge = segment[left].with_next; merge.rank != kNoMerge) {
      pairs.push_back({.rank = merge.rank, .left = left, .merged = merge.merged});
      std::push_heap(pairs.begin(), pairs.end(), std::greater<>());
    }
  };
  for (std::uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i == 0 ? size : i - 1;
    offer(i);
  }
  while (!pairs.empty()) {
    std::pop_heap(pairs.begin(), pairs.end(), std::greater<>());
    const Pair pair = pairs.back();
    pairs.pop_back();
    Symbol& left = segment[pair.left];
    // An entry is out of date once one of its two symbols was joined with another.
    if (joined[pair.left] || left.with_next.rank != pair.rank ||
        left.with_next.merged != pair.merged) {
      continue;
    }
    const std::uint32_t right = next[pair.left];
    joined[right] = true;
    next[pair.left] = next[right];
    if (next[right] < size) {
      previous[next[right]] = pair.left;
    }
    left.index = pair.merged;
    left.with_next =
        next[pair.left] < size ? merge_of(left.index, segment[next[pair.left]].index) : Merge{};
    offer(pair.left);
    if (const std::uint32_t before = previous[pair.left]; before < size) {
      segment[before].with_next = merge_of(segment[before].index, left.index);
      offer(before);
    }
  }
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i < size; ++i) {
    if (!joined[i]) {
      segment[kept++] = segment[i];
    }
  }
  segment.resize(kept);
}

}  // namespace needle
