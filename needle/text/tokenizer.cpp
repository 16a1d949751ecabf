#include "needle/text/tokenizer.h"

#include <array>
#include <exception>

#include <sentencepiece_processor.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/model_proto.h"

namespace needle {
namespace {

void check_special(std::span<const ModelProtoPiece> pieces, std::string_view where) {
  struct Expected {
    TokenId id;
    PieceType type;
    std::string_view text;  // empty: any
    std::string_view role;
  };
  static constexpr std::array<Expected, 6> kExpected{{
      {kPadId, PieceType::kControl, "", "padding"},
      {kEosId, PieceType::kControl, "", "end of sequence"},
      {kBosId, PieceType::kControl, "", "begin of sequence"},
      {kUnkId, PieceType::kUnknown, "", "unknown"},
      {kToolCallId, PieceType::kUserDefined, kToolCallPiece, "answer mark"},
      {kToolsId, PieceType::kUserDefined, kToolsPiece, "tools mark"},
  }};
  for (const Expected& expected : kExpected) {
    const auto id = static_cast<std::size_t>(expected.id);
    if (id >= pieces.size() || pieces[id].type != expected.type ||
        (!expected.text.empty() && pieces[id].text != expected.text)) {
      throw FormatError(format(
          "{}: piece {} must be the {} symbol{}{}, but it is '{}'; expected the ids pad 0, eos 1, "
          "bos 2, unk 3, <tool_call> 4, <tools> 5",
          where, id, expected.role, expected.text.empty() ? "" : " ", expected.text,
          id < pieces.size() ? pieces[id].text : std::string_view("missing")));
    }
  }
}

void load_processor(sentencepiece::SentencePieceProcessor& processor, std::string_view bytes,
                    std::string_view where) {
  std::string reason;
  try {
    const auto status = processor.LoadFromSerializedProto(bytes);
    if (status.ok()) {
      return;
    }
    reason = status.message();
  } catch (const std::exception& error) {  // its trie builder throws
    reason = error.what();
  }
  throw FormatError(format("{}: SentencePiece refuses the model: {}", where, reason));
}

}  // namespace

struct Tokenizer::Impl {
  std::string bytes;
  std::vector<ModelProtoPiece> pieces;  // views into bytes
  // The reference's processor, and one for which <tool_call> and <tools> are control symbols: those
  // match no text.
  sentencepiece::SentencePieceProcessor special;
  sentencepiece::SentencePieceProcessor plain;

  const sentencepiece::SentencePieceProcessor& processor(SpecialText text) const {
    return text == SpecialText::kSpecial ? special : plain;
  }
  void check_id(TokenId id) const {
    NEEDLE_CHECK(id >= 0 && static_cast<std::size_t>(id) < pieces.size(),
                 "token {} is outside the vocabulary of {}", id, pieces.size());
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  return from_bytes(read_file(path), path.string());
}

Tokenizer Tokenizer::from_bytes(std::string_view model_proto, std::string_view where) {
  auto impl = std::make_shared<Impl>();
  impl->bytes = std::string(model_proto);
  impl->pieces = read_model_proto(impl->bytes, where);
  check_special(impl->pieces, where);
  load_processor(impl->special, impl->bytes, where);
  load_processor(impl->plain, with_control_pieces(impl->bytes, std::array{kToolCallId, kToolsId}),
                 where);
  Tokenizer tokenizer;
  tokenizer.impl_ = std::move(impl);
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, SpecialText special) const {
  std::vector<TokenId> ids;
  const auto status = impl_->processor(special).Encode(text, &ids);
  NEEDLE_CHECK(status.ok(), "cannot encode a text of {} bytes: {}", text.size(), status.message());
  return ids;
}

std::vector<TokenSpan> Tokenizer::encode_spans(std::string_view text, SpecialText special) const {
  sentencepiece::ImmutableSentencePieceText pieces;
  const auto status = impl_->processor(special).Encode(text, pieces.mutable_proto());
  NEEDLE_CHECK(status.ok(), "cannot encode a text of {} bytes: {}", text.size(), status.message());

  std::vector<TokenSpan> spans;
  spans.reserve(pieces.pieces_size());
  std::size_t first_byte_token = 0;  // of the byte tokens of one character
  for (std::size_t i = 0; i < pieces.pieces_size(); ++i) {
    const auto piece = pieces.pieces(static_cast<int>(i));
    spans.push_back(
        {.id = static_cast<TokenId>(piece.id()), .begin = piece.begin(), .end = piece.end()});
    if (impl_->pieces[piece.id()].type != PieceType::kByte) {
      first_byte_token = i + 1;
      continue;
    }
    // SentencePiece gives a split character's bytes to the last of its tokens; here each token has
    // its own.
    if (piece.end() > piece.begin()) {
      const std::size_t count = i + 1 - first_byte_token;
      for (std::size_t k = 0; k < count && count == piece.end() - piece.begin(); ++k) {
        spans[first_byte_token + k].begin = piece.begin() + k;
        spans[first_byte_token + k].end = piece.begin() + k + 1;
      }
      first_byte_token = i + 1;
    }
  }
  return spans;
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
  for (const TokenId id : ids) {
    impl_->check_id(id);
  }
  std::string text;
  const auto status = impl_->special.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  NEEDLE_CHECK(status.ok(), "cannot decode {} tokens: {}", ids.size(), status.message());
  return is_valid_utf8(text) ? text : replace_invalid_utf8(text);
}

bool Tokenizer::round_trips(std::string_view text) const { return decode(encode(text)) == text; }

TokenId Tokenizer::vocab_size() const { return static_cast<TokenId>(impl_->pieces.size()); }

std::string_view Tokenizer::piece(TokenId id) const {
  impl_->check_id(id);
  return impl_->pieces[static_cast<std::size_t>(id)].text;
}

PieceType Tokenizer::piece_type(TokenId id) const {
  impl_->check_id(id);
  return impl_->pieces[static_cast<std::size_t>(id)].type;
}

std::string_view Tokenizer::model_bytes() const { return impl_->bytes; }

std::string Tokenizer::fingerprint() const { return sha256_hex(std::string_view(impl_->bytes)); }

}  // namespace needle
