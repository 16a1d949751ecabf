// Reads just enough of a SentencePiece model file (a protocol buffer) to check it and to change the
// type of a piece.
//
// SentencePiece trusts its files in places; a file that came from elsewhere is checked here first.
// Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/text/special_tokens.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct ModelProtoPiece {
  std::string_view text;  // a view into the model's bytes
  PieceType type = PieceType::kNormal;
};

// Throws FormatError naming `where` if the bytes are not a SentencePiece BPE model with identity
// normalisation whose pieces are valid UTF-8. Does not look at the special ids.
std::vector<ModelProtoPiece> read_model_proto(std::string_view bytes, std::string_view where);

// The same model with the pieces of these ids as control symbols, which never match in a text, and
// without self-test samples (they may rely on the pieces). `bytes` must have passed
// read_model_proto.
std::string with_control_pieces(std::string_view bytes, std::span<const TokenId> ids);

// The same model without the number of threads that trained it, which says nothing about the
// pieces: equal text and settings then give equal bytes everywhere. `bytes` must have passed
// read_model_proto.
std::string without_thread_count(std::string_view bytes);

}  // namespace needle
