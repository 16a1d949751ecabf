#include "needle/text/bpe.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <queue>

#include "needle/calls/utf8.h"

namespace needle {
namespace {

constexpr std::uint32_t kSpaceMark = 0x2581;

std::size_t bytes_of_user_symbols(std::span<const ModelProtoPiece> pieces) {
  std::size_t bytes = 0;
  for (const ModelProtoPiece& piece : pieces) {
    bytes += piece.type == PieceType::kUserDefined ? piece.text.size() : 0;
  }
  return bytes;
}

// Rank of each piece's score, 0 the highest.
std::vector<std::uint32_t> ranks_of(std::span<const ModelProtoPiece> pieces) {
  std::vector<float> scores;
  scores.reserve(pieces.size());
  for (const ModelProtoPiece& piece : pieces) {
    scores.push_back(piece.score);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<std::uint32_t> ranks;
  ranks.reserve(pieces.size());
  for (const ModelProtoPiece& piece : pieces) {
    const auto at = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>());
    ranks.push_back(static_cast<std::uint32_t>(at - scores.begin()));
  }
  return ranks;
}

// Polynomial hashes of a text's prefixes.
class PrefixHashes {
 public:
  void set(std::string_view text) {
    prefix_.assign(1, 0);
    for (const char c : text) {
      prefix_.push_back(prefix_.back() * kBase + static_cast<unsigned char>(c) + 1);
    }
    while (powers_.size() < prefix_.size()) {
      powers_.push_back(powers_.back() * kBase);
    }
  }
  std::uint64_t of(std::size_t begin, std::size_t end) const {
    return prefix_[end] - prefix_[begin] * powers_[end - begin];
  }

 private:
  static constexpr std::uint64_t kBase = 0x9E3779B97F4A7C15U;
  std::vector<std::uint64_t> prefix_;
  std::vector<std::uint64_t> powers_{1};
};

}  // namespace

// Finds pieces by text. Hashes of all prefixes of a piece come from one pass, those of its suffixes
// from them: building the merges asks for every split of every piece, at each load.
class Bpe::TextIndex {
 public:
  explicit TextIndex(std::size_t count) : slots_(std::bit_ceil(2 * count + 2)) {}

  // The text is viewed, not copied. The first index of a text stays.
  void insert(std::string_view text, std::uint64_t hash, SymbolIndex index) {
    Slot& slot = slots_[find_slot(text, hash)];
    if (slot.text.empty()) {
      slot = {.hash = hash, .text = text, .index = index};
    }
  }
  std::optional<SymbolIndex> find(std::string_view text, std::uint64_t hash) const {
    const Slot& slot = slots_[find_slot(text, hash)];
    return slot.text.empty() ? std::nullopt : std::optional(slot.index);
  }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::string_view text;  // empty: free
    SymbolIndex index = 0;
  };

  std::size_t find_slot(std::string_view text, std::uint64_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash ^ (hash >> 29)) & mask;
    while (!slots_[at].text.empty() && (slots_[at].hash != hash || slots_[at].text != text)) {
      at = (at + 1) & mask;
    }
    return at;
  }

  std::vector<Slot> slots_;
};

SymbolMatcher::SymbolMatcher(std::span<const ModelProtoPiece> pieces)
    : children_(bytes_of_user_symbols(pieces)), symbol_at_(1, kNoSymbol) {
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].type != PieceType::kUserDefined) {
      continue;
    }
    const std::string_view text = pieces[id].text;
    starts_[static_cast<unsigned char>(text.front())] = true;
    has_space_ = has_space_ || text.find(' ') != std::string_view::npos;
    std::uint32_t node = 0;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (const auto* child = children_.find(node, byte)) {
        node = *child;
        continue;
      }
      const auto child = static_cast<std::uint32_t>(symbol_at_.size());
      children_.insert(node, byte, child);
      symbol_at_.push_back(kNoSymbol);
      node = child;
    }
    symbol_at_[node] = static_cast<TokenId>(id);
  }
}

SymbolMatcher::Match SymbolMatcher::longest(std::string_view text, std::size_t position,
                                            bool special) const noexcept {
  Match match;
  if (!starts_[static_cast<unsigned char>(text[position])]) {
    return match;
  }
  std::uint32_t node = 0;
  for (std::size_t at = position; at < text.size(); ++at) {
    const auto* child = children_.find(node, static_cast<unsigned char>(text[at]));
    if (child == nullptr) {
      break;
    }
    node = *child;
    const TokenId id = symbol_at_[node];
    if (id != kNoSymbol && (special || (id != kToolCallId && id != kToolsId))) {
      match = {.id = id, .bytes = at + 1 - position};
    }
  }
  return match;
}

Bpe::Bpe(std::span<const ModelProtoPiece> pieces) : matcher_(pieces) {
  ascii_.fill(kUnknown);
  TextIndex index(add_characters(pieces) + pieces.size());
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].type == PieceType::kByte) {
      bytes_[static_cast<std::size_t>(byte_piece_value(pieces[id].text))] =
          static_cast<TokenId>(id);
    }
  }
  add_pieces(pieces, index);
  add_merges(pieces, index);
}

std::size_t Bpe::add_characters(std::span<const ModelProtoPiece> pieces) {
  std::vector<std::uint32_t> characters;
  for (const ModelProtoPiece& piece : pieces) {
    if (piece.type != PieceType::kNormal) {
      continue;
    }
    for (std::size_t at = 0; at < piece.text.size(); at += utf8_length_at(piece.text, at)) {
      characters.push_back(utf8_code_point_at(piece.text, at));
    }
  }
  std::sort(characters.begin(), characters.end());
  characters.erase(std::unique(characters.begin(), characters.end()), characters.end());
  characters_ = FlatMap<SymbolIndex>(characters.size());
  for (const std::uint32_t character : characters) {
    const auto index = static_cast<SymbolIndex>(ids_.size());
    ids_.push_back(-1);
    characters_.insert(0, character, index);
    if (character < ascii_.size()) {
      ascii_[character] = index;
    }
  }
  return characters.size();
}

void Bpe::add_pieces(std::span<const ModelProtoPiece> pieces, TextIndex& index) {
  PrefixHashes hashes;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const std::string_view text = pieces[id].text;
    // Only normal pieces come from merging: user-defined symbols are cut out of the text before.
    if (pieces[id].type != PieceType::kNormal) {
      continue;
    }
    hashes.set(text);
    for (std::size_t at = 0; at < text.size();) {
      const Character character = character_at(text, at);
      const std::uint64_t hash = hashes.of(at, at + character.bytes);
      index.insert(text.substr(at, character.bytes), hash, character.index);
      at += character.bytes;
    }
    const std::uint64_t hash = hashes.of(0, text.size());
    if (const auto character = index.find(text, hash)) {
      ids_[*character] = static_cast<TokenId>(id);
    } else {
      index.insert(text, hash, static_cast<SymbolIndex>(ids_.size()));
      ids_.push_back(static_cast<TokenId>(id));
    }
  }
}

void Bpe::add_merges(std::span<const ModelProtoPiece> pieces, const TextIndex& index) {
  struct Split {
    SymbolIndex left;
    SymbolIndex right;
    Merge merge;
  };
  std::vector<Split> splits;
  splits.reserve(3 * pieces.size());
  const auto ranks = ranks_of(pieces);
  PrefixHashes hashes;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].type != PieceType::kNormal) {
      continue;
    }
    const std::string_view text = pieces[id].text;
    hashes.set(text);
    const Merge merge = {.merged = *index.find(text, hashes.of(0, text.size())), .rank = ranks[id]};
    Character last = character_at(text, 0);
    for (std::size_t at = last.bytes; at < text.size(); at += last.bytes) {
      const Character next = character_at(text, at);
      joins_[last.character_class][next.character_class] = true;
      last = next;
      const auto left = index.find(text.substr(0, at), hashes.of(0, at));
      if (!left) {
        continue;
      }
      if (const auto right = index.find(text.substr(at), hashes.of(at, text.size()))) {
        splits.push_back({.left = *left, .right = *right, .merge = merge});
      }
    }
  }
  merges_ = FlatMap<Merge>(splits.size());
  for (const Split& split : splits) {
    merges_.insert(split.left, split.right, split.merge);
  }
}

Bpe::Character Bpe::character_at(std::string_view text, std::size_t position) const noexcept {
  const auto byte = static_cast<unsigned char>(text[position]);
  if (byte < 0x80) {
    return {.index = ascii_[byte], .bytes = 1, .character_class = byte};
  }
  const std::uint32_t code_point = utf8_code_point_at(text, position);
  const auto* index = characters_.find(0, code_point);
  return {.index = index == nullptr ? kUnknown : *index,
          .bytes = byte < 0xE0 ? 2U : (byte < 0xF0 ? 3U : 4U),
          .character_class = code_point == kSpaceMark ? kSpace : kOther};
}

Bpe::Merge Bpe::merge_of(SymbolIndex left, SymbolIndex right) const noexcept {
  const Merge* merge = merges_.find(left, right);
  return merge == nullptr ? Merge{} : *merge;
}

void Bpe::merge(std::vector<Symbol>& segment) const {
  if (segment.size() < 2) {
    return;
  }
  for (std::size_t i = 0; i + 1 < segment.size(); ++i) {
    segment[i].with_next = merge_of(segment[i].index, segment[i + 1].index);
  }
  if (segment.size() > kScanLimit) {
    merge_with_heap(segment);
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

void Bpe::merge_with_heap(std::vector<Symbol>& segment) const {
  struct Pair {
    std::uint32_t rank;
    std::uint32_t left;  // position in `segment`
    SymbolIndex merged;
    bool operator>(const Pair& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::priority_queue<Pair, std::vector<Pair>, std::greater<>> pairs;
  const auto size = static_cast<std::uint32_t>(segment.size());
  std::vector<std::uint32_t> next(size);  // neighbours that are left; `size`: none
  std::vector<std::uint32_t> previous(size);
  std::vector<bool> joined(size);  // into its left neighbour
  const auto offer = [&](std::uint32_t left) {
    if (const Merge& merge = segment[left].with_next; merge.rank != kNoMerge) {
      pairs.push({.rank = merge.rank, .left = left, .merged = merge.merged});
    }
  };
  for (std::uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i == 0 ? size : i - 1;
    offer(i);
  }
  while (!pairs.empty()) {
    const Pair pair = pairs.top();
    pairs.pop();
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
