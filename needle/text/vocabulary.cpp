#include "needle/text/vocabulary.h"

#include <algorithm>
#include <cstring>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/model_proto.h"

namespace needle {
namespace {

// Takes arrays from the front of what is left.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <class T>
  std::span<const T> take(std::size_t count) {
    fits_ = fits_ && count <= left_.size() / sizeof(T);
    if (!fits_) {
      return {};
    }
    const std::span<const T> taken(reinterpret_cast<const T*>(left_.data()), count);
    left_ = left_.subspan(count * sizeof(T));
    return taken;
  }
  bool used_up() const { return fits_ && left_.empty(); }

 private:
  std::span<const std::byte> left_;
  bool fits_ = true;
};

bool is_sound(const PairMap& map, std::size_t limit) {
  bool has_free = false;
  bool inside = true;
  for (const std::uint64_t slot : map.slots()) {
    has_free = has_free || slot == 0;
    inside = inside && (slot == 0 || (slot & (PairMap::kLimit - 1)) < limit);
  }
  return has_free && inside;
}

bool are_ids(std::span<const TokenId> ids, TokenId least, std::size_t pieces) {
  return std::ranges::all_of(ids, [&](TokenId id) {
    return id >= least && (id < 0 || static_cast<std::size_t>(id) < pieces);
  });
}

}  // namespace

std::optional<Vocabulary> Vocabulary::view(std::span<const std::byte> tables,
                                           std::string_view model, std::string_view where) {
  NEEDLE_CHECK(reinterpret_cast<std::uintptr_t>(tables.data()) % alignof(VocabularyHead) == 0,
               "a vocabulary's tables must lie at a multiple of {} bytes", alignof(VocabularyHead));
  Reader reader(tables);
  const auto heads = reader.take<VocabularyHead>(1);
  if (heads.empty() || heads[0].version != kVocabularyVersion ||
      heads[0].model_bytes != model.size() ||
      heads[0].model_crc != crc32c(std::as_bytes(std::span(model)))) {
    return std::nullopt;
  }
  const VocabularyHead& head = heads[0];
  Vocabulary vocabulary;
  vocabulary.model = model;
  vocabulary.head = &head;
  vocabulary.merges = PairMap(reader.take<std::uint64_t>(head.merge_slots));
  vocabulary.characters = PairMap(reader.take<std::uint64_t>(head.character_slots));
  vocabulary.children = PairMap(reader.take<std::uint64_t>(head.child_slots));
  vocabulary.entries = reader.take<VocabularyEntry>(head.pieces);
  vocabulary.ids = reader.take<TokenId>(head.symbols);
  vocabulary.ranks = reader.take<std::uint32_t>(head.symbols);
  vocabulary.symbol_at = reader.take<TokenId>(head.nodes);
  const auto unk = reader.take<char>(head.unk_bytes);
  vocabulary.unk_surface = {unk.data(), unk.size()};
  if (!reader.used_up()) {
    throw FormatError(
        format("{}: the vocabulary's tables do not have the length that they say; "
               "export the model again",
               where));
  }
  vocabulary.check(where);
  return vocabulary;
}

void Vocabulary::check(std::string_view where) const {
  const auto expect = [&](bool holds, std::string_view what) {
    if (!holds) {
      throw FormatError(format(
          "{}: the vocabulary's tables are damaged ({}); export the model again", where, what));
    }
  };
  for (std::size_t id = 0; id < size(); ++id) {
    const std::size_t length = entries[id].length_and_type >> 8;
    expect(length > 0 && entries[id].begin <= model.size() &&
               length <= model.size() - entries[id].begin && is_valid_utf8(piece(id)),
           "the text of a piece");
    expect(type(id) <= PieceType::kByte && type(id) != PieceType::kUnused &&
               (type(id) != PieceType::kByte || byte_piece_value(piece(id)) >= 0),
           "the type of a piece");
  }
  expect(head->add_dummy_prefix <= 1 && head->remove_extra_whitespaces <= 1 &&
             head->symbols_have_space <= 1,
         "a flag");
  expect(is_sound(merges, ids.size()) && is_sound(characters, ids.size()) &&
             is_sound(children, symbol_at.size()),
         "a hash table");
  expect(!symbol_at.empty() && are_ids(symbol_at, -1, size()) && are_ids(ids, -1, size()) &&
             are_ids(head->bytes, 0, size()),
         "the id of a piece");
  expect(std::ranges::all_of(
             head->ascii,
             [&](SymbolIndex symbol) { return symbol == kUnknownSymbol || symbol < ids.size(); }),
         "a character");
}

}  // namespace needle
