#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/model_proto.h"
#include "needle/text/vocabulary.h"

namespace needle {
namespace {

constexpr std::uint32_t kSpaceMark = 0x2581;

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

// Finds pieces by text. Hashes of all prefixes of a piece come from one pass, those of its suffixes
// from them: building the merges asks for every split of every piece, at each load.
class TextIndex {
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

// Fills the tables one after the other, then writes them in one stretch.
class VocabularyMaker {
 public:
  VocabularyMaker(std::string_view bytes, const ModelProto& model, std::string_view where)
      : bytes_(bytes), model_(model), where_(where) {
    head_.version = kVocabularyVersion;
    head_.model_crc = crc32c(std::as_bytes(std::span(bytes)));
    head_.model_bytes = bytes.size();
    head_.add_dummy_prefix = model.add_dummy_prefix ? 1 : 0;
    head_.remove_extra_whitespaces = model.remove_extra_whitespaces ? 1 : 0;
    head_.ascii.fill(kUnknownSymbol);
  }

  std::vector<std::byte> run() {
    add_entries();
    add_user_symbols();
    const std::size_t characters = add_characters();
    TextIndex index(characters + model_.pieces.size());
    add_pieces(index);
    check_count(ids_.size());
    add_merges(index);
    return written();
  }

 private:
  void check_count(std::size_t count) const {
    if (count >= PairMap::kLimit) {
      throw FormatError(format("{}: a vocabulary of {} pieces and characters; at most {} are read",
                               where_, count, PairMap::kLimit - 1));
    }
  }

  void add_entries() {
    check_count(model_.pieces.size());
    entries_.reserve(model_.pieces.size());
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      const ModelProtoPiece& piece = model_.pieces[id];
      const auto begin = static_cast<std::size_t>(piece.text.data() - bytes_.data());
      if (begin > UINT32_MAX || piece.text.size() > UINT32_MAX >> 8) {
        throw FormatError(
            format("{}: piece {} is too long or too far from the beginning", where_, id));
      }
      entries_.push_back({.begin = static_cast<std::uint32_t>(begin),
                          .length_and_type = static_cast<std::uint32_t>(piece.text.size()) << 8 |
                                             static_cast<std::uint32_t>(piece.type)});
      if (piece.type == PieceType::kByte) {
        head_.bytes[static_cast<std::size_t>(byte_piece_value(piece.text))] =
            static_cast<TokenId>(id);
      }
    }
  }

  void add_user_symbols() {
    std::size_t bytes = 0;
    for (const ModelProtoPiece& piece : model_.pieces) {
      bytes += piece.type == PieceType::kUserDefined ? piece.text.size() : 0;
    }
    check_count(bytes);
    children_ = PairMapBuilder(bytes);
    for (std::size_t id = 0; id < model_.pieces.size(); ++id) {
      if (model_.pieces[id].type == PieceType::kUserDefined) {
        add_user_symbol(model_.pieces[id].text, static_cast<TokenId>(id));
      }
    }
  }

  void add_user_symbol(std::string_view text, TokenId id) {
    head_.starts[static_cast<unsigned char>(text.front())] = 1;
    if (text.find(' ') != std::string_view::npos) {
      head_.symbols_have_space = 1;
    }
    std::uint32_t node = 0;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      std::uint32_t child = children_.map().find(node, byte);
      if (child == PairMap::kNone) {
        child = static_cast<std::uint32_t>(symbol_at_.size());
        children_.insert(node, byte, child);
        symbol_at_.push_back(-1);
      }
      node = child;
    }
    symbol_at_[node] = id;
  }

  // Returns how many there are.
  std::size_t add_characters() {
    std::vector<std::uint32_t> characters;
    for (const ModelProtoPiece& piece : model_.pieces) {
      if (piece.type != PieceType::kNormal) {
        continue;
      }
      for (std::size_t at = 0; at < piece.text.size(); at += utf8_length_at(piece.text, at)) {
        characters.push_back(utf8_code_point_at(piece.text, at));
      }
    }
    std::sort(characters.begin(), characters.end());
    characters.erase(std::unique(characters.begin(), characters.end()), characters.end());
    check_count(characters.size());
    characters_ = PairMapBuilder(characters.size());
    for (const std::uint32_t character : characters) {
      const auto index = static_cast<SymbolIndex>(ids_.size());
      ids_.push_back(-1);
      characters_.insert(0, character, index);
      if (character < head_.ascii.size()) {
        head_.ascii[character] = index;
      }
    }
    return characters.size();
  }

  void add_pieces(TextIndex& index) {
    const std::vector<ModelProtoPiece>& pieces = model_.pieces;
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

  void add_merges(const TextIndex& index) {
    struct Split {
      SymbolIndex left;
      SymbolIndex right;
      SymbolIndex merged;
    };
    const std::vector<ModelProtoPiece>& pieces = model_.pieces;
    std::vector<Split> splits;
    splits.reserve(3 * pieces.size());
    const auto ranks = ranks_of(pieces);
    ranks_.assign(ids_.size(), PairMap::kNone);
    PrefixHashes hashes;
    for (std::size_t id = 0; id < pieces.size(); ++id) {
      if (pieces[id].type != PieceType::kNormal) {
        continue;
      }
      const std::string_view text = pieces[id].text;
      hashes.set(text);
      const SymbolIndex merged = *index.find(text, hashes.of(0, text.size()));
      ranks_[merged] = ranks[id];
      Character last = character_at(text, 0);
      for (std::size_t at = last.bytes; at < text.size(); at += last.bytes) {
        const Character next = character_at(text, at);
        head_.joins[last.character_class][next.character_class] = 1;
        last = next;
        const auto left = index.find(text.substr(0, at), hashes.of(0, at));
        if (!left) {
          continue;
        }
        if (const auto right = index.find(text.substr(at), hashes.of(at, text.size()))) {
          splits.push_back({.left = *left, .right = *right, .merged = merged});
        }
      }
    }
    merges_ = PairMapBuilder(splits.size());
    for (const Split& split : splits) {
      merges_.insert(split.left, split.right, split.merged);
    }
  }

  struct Character {
    SymbolIndex index = kUnknownSymbol;
    std::size_t bytes = 1;
    std::size_t character_class = 0;
  };
  Character character_at(std::string_view text, std::size_t position) const {
    const std::uint32_t code_point = utf8_code_point_at(text, position);
    return {.index = characters_.map().find(0, code_point),
            .bytes = utf8_length_at(text, position),
            .character_class = code_point < 0x80          ? code_point
                               : code_point == kSpaceMark ? kSpaceClass
                                                          : kOtherClass};
  }

  std::vector<std::byte> written() {
    const auto slots = [](const PairMapBuilder& map) {
      return static_cast<std::uint32_t>(map.map().slots().size());
    };
    head_.merge_slots = slots(merges_);
    head_.character_slots = slots(characters_);
    head_.child_slots = slots(children_);
    head_.pieces = static_cast<std::uint32_t>(entries_.size());
    head_.symbols = static_cast<std::uint32_t>(ids_.size());
    head_.nodes = static_cast<std::uint32_t>(symbol_at_.size());
    head_.unk_bytes = static_cast<std::uint32_t>(model_.unk_surface.size());
    std::vector<std::byte> out(
        sizeof head_ +
        sizeof(std::uint64_t) * (std::size_t{head_.merge_slots} + head_.character_slots +
                                 head_.child_slots + entries_.size()) +
        sizeof(TokenId) * (2 * ids_.size() + symbol_at_.size()) + head_.unk_bytes);
    std::size_t at = 0;
    const auto append = [&](auto values) {
      std::memcpy(out.data() + at, values.data(), values.size_bytes());
      at += values.size_bytes();
    };
    append(std::span(&head_, 1));
    append(merges_.map().slots());
    append(characters_.map().slots());
    append(children_.map().slots());
    append(std::span(entries_));
    append(std::span(ids_));
    append(std::span(ranks_));
    append(std::span(symbol_at_));
    append(std::span(model_.unk_surface));
    return out;
  }

  std::string_view bytes_;
  const ModelProto& model_;
  std::string_view where_;
  VocabularyHead head_{};
  PairMapBuilder merges_{0};
  PairMapBuilder characters_{0};
  PairMapBuilder children_{0};
  std::vector<VocabularyEntry> entries_;
  std::vector<TokenId> ids_;
  std::vector<std::uint32_t> ranks_;
  std::vector<TokenId> symbol_at_{-1};
};

}  // namespace

std::vector<std::byte> make_vocabulary(std::string_view model, std::string_view where) {
  const ModelProto proto = read_model_proto(model, where);
  return VocabularyMaker(model, proto, where).run();
}

}  // namespace needle
