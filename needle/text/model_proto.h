// Reads a SentencePiece model file (a protocol buffer): its pieces and the settings that change how
// texts are encoded. Everything that came from elsewhere is checked here.
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
  float score = 0.0F;     // finite or infinite, never NaN
  PieceType type = PieceType::kNormal;
};

struct ModelProto {
  std::vector<ModelProtoPiece> pieces;
  bool add_dummy_prefix = true;                // a space before the text
  bool remove_extra_whitespaces = true;        // spaces at the edges and all but one of a run
  std::string unk_surface = " \xE2\x81\x87 ";  // how the unknown piece is decoded
};

// Throws FormatError naming `where` if the bytes are not a SentencePiece BPE model with identity
// normalisation and byte fallback, whose pieces are valid UTF-8, each there once, among them one
// unknown piece and all 256 bytes. Does not look at the special ids.
ModelProto read_model_proto(std::string_view bytes, std::string_view where);

// The byte of a byte piece, "<0x0A>" for 10; -1 for any other text.
int byte_piece_value(std::string_view text);

// A line of a vocabulary that came without a model file.
struct VocabularyPiece {
  std::string text;
  float score = 0.0F;  // the pair that makes the piece of the highest score is merged first
};
// A model of these pieces by id, with the settings above. The first six are the special ones
// (special_tokens.h), "<0x00>" to "<0xFF>" are bytes.
std::string model_proto_of_vocabulary(std::span<const VocabularyPiece> pieces);

// The same model without the number of threads that trained it, which says nothing about the
// pieces: equal text and settings then give equal bytes everywhere. `bytes` must have passed
// read_model_proto.
std::string without_thread_count(std::string_view bytes);

}  // namespace needle
