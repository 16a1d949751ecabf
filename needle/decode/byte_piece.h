// Byte pieces: how a SentencePiece vocabulary spells what it has no piece for.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

#include "needle/text/tokenizer.h"

namespace needle {

// 0xE9 of the piece "<0xE9>"; nothing if `id` is no byte piece.
inline std::optional<std::uint8_t> byte_of_piece(const Tokenizer& tokenizer, TokenId id) {
  if (tokenizer.piece_type(id) != PieceType::kByte) {
    return std::nullopt;
  }
  constexpr std::string_view kPrefix = "<0x";
  const std::string_view piece = tokenizer.piece(id);
  std::uint8_t byte = 0;
  if (piece.size() != kPrefix.size() + 3 || !piece.starts_with(kPrefix) ||
      std::from_chars(piece.data() + kPrefix.size(), piece.data() + piece.size() - 1, byte, 16)
              .ec != std::errc()) {
    return std::nullopt;
  }
  return byte;
}

}  // namespace needle
