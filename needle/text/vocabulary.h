// The tables that a vocabulary is encoded and decoded with, in one stretch of memory that may lie
// in a mapped weights file: made from a SentencePiece model once, by the exporter, and used as they
// lie. docs/file-format.md describes every byte.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "needle/text/pair_map.h"
#include "needle/text/special_tokens.h"
#include "needle/text/tokenizer.h"

namespace needle {

inline constexpr std::uint32_t kVocabularyVersion = 1;

// A text that merging may handle: a piece, or a character that only occurs inside pieces.
using SymbolIndex = std::uint32_t;
inline constexpr SymbolIndex kUnknownSymbol = PairMap::kNone;

// Characters as classes, for which one table says whether any piece holds the two side by side.
inline constexpr std::size_t kOtherClass = 128;  // not ASCII
inline constexpr std::size_t kSpaceClass = 129;  // U+2581
inline constexpr std::size_t kCharacterClasses = 130;

// The beginning of the tables; the arrays follow in the order of Vocabulary's members.
struct VocabularyHead {
  std::uint32_t version;
  std::uint32_t model_crc;  // CRC-32C of the model that the tables were made of
  std::uint64_t model_bytes;
  std::uint32_t merge_slots;
  std::uint32_t character_slots;
  std::uint32_t child_slots;
  std::uint32_t pieces;
  std::uint32_t symbols;
  std::uint32_t nodes;
  std::uint32_t unk_bytes;
  std::uint8_t add_dummy_prefix;  // flags are 0 or 1
  std::uint8_t remove_extra_whitespaces;
  std::uint8_t symbols_have_space;  // a user-defined symbol holds one
  std::uint8_t reserved;
  std::array<SymbolIndex, 128> ascii;
  std::array<TokenId, 256> bytes;
  std::array<std::uint8_t, 256> starts;  // whether a user-defined symbol begins with the byte
  std::array<std::array<std::uint8_t, kCharacterClasses>, kCharacterClasses> joins;
  std::uint32_t reserved_end;
};
static_assert(sizeof(VocabularyHead) == 18744, "docs/file-format.md says so");

struct VocabularyEntry {
  std::uint32_t begin;            // of the text, in the model's bytes
  std::uint32_t length_and_type;  // 256 * length + PieceType
};

// A view. Immutable: safe from several threads as long as what it views lives.
class Vocabulary {
 public:
  // Of the tables and the model that they were made of; nothing if they are of another version or
  // of another model: then make them again. Throws FormatError naming `where` if they are damaged:
  // whatever they hold, using what came through reads nothing outside them and ends.
  static std::optional<Vocabulary> view(std::span<const std::byte> tables, std::string_view model,
                                        std::string_view where);

  std::size_t size() const noexcept { return entries.size(); }
  std::string_view piece(std::size_t id) const noexcept {
    return model.substr(entries[id].begin, entries[id].length_and_type >> 8);
  }
  PieceType type(std::size_t id) const noexcept {
    return static_cast<PieceType>(entries[id].length_and_type & 0xFF);
  }

  std::string_view model;
  const VocabularyHead* head = nullptr;
  PairMap merges;                            // (left, right) -> the symbol that they make
  PairMap characters;                        // (0, code point) -> symbol
  PairMap children;                          // (node, byte) -> node; node 0 is the root
  std::span<const VocabularyEntry> entries;  // per id
  std::span<const TokenId> ids;              // per symbol; -1: no piece
  std::span<const std::uint32_t> ranks;      // per symbol: 0 is joined first, equal scores alike
  std::span<const TokenId> symbol_at;        // per node of user-defined symbols; -1: none
  std::string_view unk_surface;              // how the unknown piece is decoded

 private:
  void check(std::string_view where) const;
};

// The tables of a serialised SentencePiece model. Throws FormatError as read_model_proto does, and
// if there are more than two million pieces and characters.
std::vector<std::byte> make_vocabulary(std::string_view model, std::string_view where);

}  // namespace needle
