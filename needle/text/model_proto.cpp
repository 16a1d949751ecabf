#include "needle/text/model_proto.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"

namespace needle {
namespace {

enum class WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Field numbers of ModelProto and of its messages.
constexpr std::uint32_t kPieces = 1;
constexpr std::uint32_t kTrainerSpec = 2;
constexpr std::uint32_t kNormalizerSpec = 3;
constexpr std::uint32_t kDenormalizerSpec = 5;
constexpr std::uint32_t kPieceText = 1;
constexpr std::uint32_t kPieceScore = 2;
constexpr std::uint32_t kPieceType = 3;
constexpr std::uint32_t kModelType = 3;
constexpr std::uint32_t kVocabSize = 4;
constexpr std::uint32_t kNumThreads = 16;
constexpr std::uint32_t kTreatWhitespaceAsSuffix = 24;
constexpr std::uint32_t kByteFallback = 35;
constexpr std::uint32_t kSpecialIds = 40;
constexpr std::uint32_t kUnkSurface = 44;
constexpr std::uint32_t kCharsmap = 2;
constexpr std::uint32_t kAddDummyPrefix = 3;
constexpr std::uint32_t kRemoveExtraWhitespaces = 4;
constexpr std::uint32_t kEscapeWhitespaces = 5;
constexpr std::uint64_t kBpe = 2;

struct Field {
  std::uint32_t number = 0;
  WireType type = WireType::kVarint;
  std::uint64_t varint = 0;  // kVarint
  std::string_view payload;  // kBytes, kFixed32, kFixed64
  std::string_view encoded;  // the whole field as it stands in the file
};

// Goes through the fields of one message; every length is checked before it is used.
class FieldReader {
 public:
  FieldReader(std::string_view bytes, std::string_view where) : bytes_(bytes), where_(where) {}

  std::optional<Field> next() {
    if (at_ == bytes_.size()) {
      return std::nullopt;
    }
    const std::size_t start = at_;
    const std::uint64_t tag = read_varint();
    const auto type = static_cast<std::uint32_t>(tag & 7);
    if (tag >> 32 != 0 || tag >> 3 == 0) {
      fail(start);
    }
    Field field{.number = static_cast<std::uint32_t>(tag >> 3),
                .type = static_cast<WireType>(type),
                .payload = {},
                .encoded = {}};
    switch (field.type) {
      case WireType::kVarint:
        field.varint = read_varint();
        break;
      case WireType::kFixed64:
        field.payload = read_bytes(8);
        break;
      case WireType::kFixed32:
        field.payload = read_bytes(4);
        break;
      case WireType::kBytes:
        field.payload = read_bytes(read_varint());
        break;
      default:
        fail(start);
    }
    field.encoded = bytes_.substr(start, at_ - start);
    return field;
  }

 private:
  [[noreturn]] void fail(std::size_t position) const {
    throw FormatError(
        format("{}: not a SentencePiece model: broken at byte {} of a message of {} bytes; train "
               "or copy the tokenizer again",
               where_, position, bytes_.size()));
  }

  std::uint64_t read_varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size()) {
        fail(at_);
      }
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    fail(at_);
  }

  std::string_view read_bytes(std::uint64_t count) {
    if (count > bytes_.size() - at_) {
      fail(at_);
    }
    const std::string_view bytes = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += bytes.size();
    return bytes;
  }

  std::string_view bytes_;
  std::string_view where_;
  std::size_t at_ = 0;
};

void expect_type(const Field& field, WireType type, std::string_view name, std::string_view where) {
  if (field.type != type) {
    throw FormatError(format("{}: not a SentencePiece model: {} has another type", where, name));
  }
}

PieceType piece_type_of(std::uint64_t value, std::string_view where) {
  switch (value) {
    case 1:
      return PieceType::kNormal;
    case 2:
      return PieceType::kUnknown;
    case 3:
      return PieceType::kControl;
    case 4:
      return PieceType::kUserDefined;
    case 5:
      return PieceType::kUnused;
    case 6:
      return PieceType::kByte;
    default:
      throw FormatError(format("{}: not a SentencePiece model: piece type {}", where, value));
  }
}

ModelProtoPiece read_piece(std::string_view message, std::size_t id, std::string_view where) {
  ModelProtoPiece piece;
  FieldReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->number == kPieceText) {
      expect_type(*field, WireType::kBytes, "a piece", where);
      piece.text = field->payload;
    } else if (field->number == kPieceScore) {
      expect_type(*field, WireType::kFixed32, "a score", where);
      std::uint32_t bits = 0;
      std::memcpy(&bits, field->payload.data(), sizeof(bits));
      if (std::isnan(std::bit_cast<float>(bits))) {
        throw FormatError(format("{}: the score of piece {} is not a number", where, id));
      }
      piece.score = std::bit_cast<float>(bits);
    } else if (field->number == kPieceType) {
      expect_type(*field, WireType::kVarint, "a piece's type", where);
      piece.type = piece_type_of(field->varint, where);
    }
  }
  // SentencePiece's own trie would end at a zero byte.
  if (piece.text.empty() || !is_valid_utf8(piece.text) ||
      piece.text.find('\0') != std::string_view::npos) {
    throw FormatError(format("{}: piece {} is empty or not valid text", where, id));
  }
  return piece;
}

bool read_flag(const Field& field, std::string_view name, std::string_view where) {
  expect_type(field, WireType::kVarint, name, where);
  return field.varint != 0;
}

[[noreturn]] void refuse(std::string_view where, std::string_view setting) {
  throw FormatError(format(
      "{}: the tokenizer {}; expected a BPE model of identity normalisation with byte fallback, as "
      "needle-data train-tokenizer makes them",
      where, setting));
}

void read_normalizer(std::string_view message, ModelProto& model, std::string_view where) {
  FieldReader reader(message, where);
  while (const auto field = reader.next()) {
    switch (field->number) {
      case kCharsmap:
        if (field->type != WireType::kBytes || !field->payload.empty()) {
          refuse(where, "rewrites characters (a normalisation table)");
        }
        break;
      case kAddDummyPrefix:
        model.add_dummy_prefix = read_flag(*field, "add_dummy_prefix", where);
        break;
      case kRemoveExtraWhitespaces:
        model.remove_extra_whitespaces = read_flag(*field, "remove_extra_whitespaces", where);
        break;
      case kEscapeWhitespaces:
        if (!read_flag(*field, "escape_whitespaces", where)) {
          refuse(where, "keeps spaces as they are (escape_whitespaces is false)");
        }
        break;
      default:
        break;
    }
  }
}

void read_trainer(std::string_view message, ModelProto& model, std::string_view where) {
  std::uint64_t model_type = 1;  // unigram is SentencePiece's default
  bool byte_fallback = false;
  FieldReader reader(message, where);
  while (const auto field = reader.next()) {
    switch (field->number) {
      case kModelType:
        expect_type(*field, WireType::kVarint, "the model type", where);
        model_type = field->varint;
        break;
      case kTreatWhitespaceAsSuffix:
        if (read_flag(*field, "treat_whitespace_as_suffix", where)) {
          refuse(where, "puts spaces behind words (treat_whitespace_as_suffix is true)");
        }
        break;
      case kByteFallback:
        byte_fallback = read_flag(*field, "byte_fallback", where);
        break;
      case kUnkSurface:
        expect_type(*field, WireType::kBytes, "unk_surface", where);
        model.unk_surface = std::string(field->payload);
        break;
      default:
        break;
    }
  }
  if (model_type != kBpe) {
    throw FormatError(format("{}: expected a SentencePiece model of type bpe (2), got type {}",
                             where, model_type));
  }
  if (!byte_fallback) {
    refuse(where, "has no byte fallback");
  }
}

// Each text once, one unknown piece, all bytes: what encoding and decoding rely on.
void check_pieces(const std::vector<ModelProtoPiece>& pieces, std::string_view where) {
  std::unordered_set<std::string_view> seen;
  seen.reserve(pieces.size());
  int unknown = 0;
  int bytes = 0;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const ModelProtoPiece& piece = pieces[id];
    if (!seen.insert(piece.text).second) {
      throw FormatError(format("{}: piece {} '{}' is there twice", where, id, piece.text));
    }
    unknown += piece.type == PieceType::kUnknown ? 1 : 0;
    if (piece.type == PieceType::kUnused) {
      throw FormatError(
          format("{}: piece {} is of the type unused, which this program does not "
                 "read; train the tokenizer again",
                 where, id));
    }
    if (piece.type == PieceType::kByte) {
      ++bytes;
      if (byte_piece_value(piece.text) < 0) {
        throw FormatError(format("{}: piece {} '{}' is no byte; expected <0x00> to <0xFF>", where,
                                 id, piece.text));
      }
    }
  }
  if (unknown != 1 || bytes != 256) {
    throw FormatError(
        format("{}: not a SentencePiece model with byte fallback: {} unknown pieces and {} bytes, "
               "expected 1 and 256",
               where, unknown, bytes));
  }
}

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) {
    out.push_back(static_cast<char>((value & 0x7F) | 0x80));
  }
  out.push_back(static_cast<char>(value));
}

void append_tag(std::string& out, std::uint32_t number, WireType type) {
  append_varint(out, (std::uint64_t{number} << 3) | static_cast<std::uint32_t>(type));
}

void append_message(std::string& out, std::uint32_t number, std::string_view message) {
  append_tag(out, number, WireType::kBytes);
  append_varint(out, message.size());
  out += message;
}

void append_number(std::string& out, std::uint32_t number, std::uint64_t value) {
  append_tag(out, number, WireType::kVarint);
  append_varint(out, value);
}

PieceType type_in_vocabulary(std::size_t id, std::string_view text) {
  if (id == static_cast<std::size_t>(kUnkId)) {
    return PieceType::kUnknown;
  }
  if (id < static_cast<std::size_t>(kUnkId)) {
    return PieceType::kControl;
  }
  if (id <= static_cast<std::size_t>(kToolsId)) {
    return PieceType::kUserDefined;
  }
  return byte_piece_value(text) >= 0 ? PieceType::kByte : PieceType::kNormal;
}

// The inverse of piece_type_of().
std::uint64_t piece_type_value(PieceType type) { return static_cast<std::uint64_t>(type) + 1; }
static_assert(static_cast<int>(PieceType::kNormal) == 0 && static_cast<int>(PieceType::kByte) == 5,
              "PieceType is in SentencePiece's order");

}  // namespace

std::string model_proto_of_vocabulary(std::span<const VocabularyPiece> pieces) {
  std::string model;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const PieceType type = type_in_vocabulary(id, pieces[id].text);
    std::string piece;
    append_message(piece, kPieceText, pieces[id].text);
    append_tag(piece, kPieceScore, WireType::kFixed32);
    const auto bits = std::bit_cast<std::uint32_t>(pieces[id].score);
    for (const unsigned shift : {0U, 8U, 16U, 24U}) {
      piece.push_back(static_cast<char>(bits >> shift & 0xFFU));
    }
    append_number(piece, kPieceType, piece_type_value(type));
    append_message(model, kPieces, piece);
  }
  std::string trainer;
  append_number(trainer, kModelType, kBpe);
  append_number(trainer, kVocabSize, pieces.size());
  append_number(trainer, kByteFallback, 1);
  append_number(trainer, kSpecialIds, kUnkId);  // and bos, eos, pad in the numbers that follow
  append_number(trainer, kSpecialIds + 1, kBosId);
  append_number(trainer, kSpecialIds + 2, kEosId);
  append_number(trainer, kSpecialIds + 3, kPadId);
  append_message(model, kTrainerSpec, trainer);
  std::string normalizer;
  append_message(normalizer, 1, "identity");
  append_number(normalizer, kAddDummyPrefix, 1);
  append_number(normalizer, kRemoveExtraWhitespaces, 1);
  append_number(normalizer, kEscapeWhitespaces, 1);
  append_message(model, kNormalizerSpec, normalizer);
  return model;
}

int byte_piece_value(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') {
    return -1;
  }
  const std::size_t high = kDigits.find(text[3]);
  const std::size_t low = kDigits.find(text[4]);
  return high == std::string_view::npos || low == std::string_view::npos
             ? -1
             : static_cast<int>(high * 16 + low);
}

ModelProto read_model_proto(std::string_view bytes, std::string_view where) {
  ModelProto model;
  bool has_trainer_spec = false;
  FieldReader reader(bytes, where);
  while (const auto field = reader.next()) {
    if (field->number > kDenormalizerSpec) {
      continue;
    }
    expect_type(*field, WireType::kBytes, "a message", where);
    switch (field->number) {
      case kPieces:
        model.pieces.push_back(read_piece(field->payload, model.pieces.size(), where));
        break;
      case kTrainerSpec:
        has_trainer_spec = true;
        read_trainer(field->payload, model, where);
        break;
      case kNormalizerSpec:
        read_normalizer(field->payload, model, where);
        break;
      case kDenormalizerSpec: {
        ModelProto ignored;  // only a table would matter, and that is refused
        read_normalizer(field->payload, ignored, where);
        break;
      }
      default:
        break;
    }
  }
  if (model.pieces.empty() || !has_trainer_spec) {
    throw FormatError(format(
        "{}: not a SentencePiece model: it has no pieces or no trainer specification", where));
  }
  check_pieces(model.pieces, where);
  return model;
}

std::string without_thread_count(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  FieldReader reader(bytes, "tokenizer");
  while (const auto field = reader.next()) {
    if (field->number != kTrainerSpec) {
      out += field->encoded;
      continue;
    }
    std::string spec;
    FieldReader settings(field->payload, "tokenizer");
    while (const auto setting = settings.next()) {
      if (setting->number != kNumThreads) {
        spec += setting->encoded;
      }
    }
    append_message(out, kTrainerSpec, spec);
  }
  return out;
}

}  // namespace needle
