#include "needle/text/model_proto.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"

namespace needle {
namespace {

enum class WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Field numbers of ModelProto and of its messages.
constexpr std::uint32_t kPieces = 1;
constexpr std::uint32_t kTrainerSpec = 2;
constexpr std::uint32_t kNormalizerSpec = 3;
constexpr std::uint32_t kSelfTestData = 4;
constexpr std::uint32_t kDenormalizerSpec = 5;
constexpr std::uint32_t kPieceText = 1;
constexpr std::uint32_t kPieceScore = 2;
constexpr std::uint32_t kPieceType = 3;
constexpr std::uint32_t kModelType = 3;
constexpr std::uint32_t kNumThreads = 16;
constexpr std::uint32_t kCharsmap = 2;
constexpr std::uint64_t kBpe = 2;
constexpr std::uint64_t kControl = 3;

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
    } else if (field->number == kPieceType) {
      expect_type(*field, WireType::kVarint, "a piece's type", where);
      piece.type = piece_type_of(field->varint, where);
    }
  }
  // A zero byte would end the piece early inside SentencePiece's trie.
  if (piece.text.empty() || !is_valid_utf8(piece.text) ||
      piece.text.find('\0') != std::string_view::npos) {
    throw FormatError(format("{}: piece {} is empty or not valid text", where, id));
  }
  return piece;
}

void check_normalizer(std::string_view message, std::string_view where) {
  FieldReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->number == kCharsmap &&
        !(field->type == WireType::kBytes && field->payload.empty())) {
      throw FormatError(
          format("{}: the tokenizer rewrites characters (a normalisation table); expected the "
                 "rule 'identity'",
                 where));
    }
  }
}

void check_trainer(std::string_view message, std::string_view where) {
  std::uint64_t model_type = 1;  // unigram is SentencePiece's default
  FieldReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->number == kModelType) {
      expect_type(*field, WireType::kVarint, "the model type", where);
      model_type = field->varint;
    }
  }
  if (model_type != kBpe) {
    throw FormatError(format("{}: expected a SentencePiece model of type bpe (2), got type {}",
                             where, model_type));
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

}  // namespace

std::vector<ModelProtoPiece> read_model_proto(std::string_view bytes, std::string_view where) {
  std::vector<ModelProtoPiece> pieces;
  bool has_trainer_spec = false;
  FieldReader reader(bytes, where);
  while (const auto field = reader.next()) {
    if (field->number > kDenormalizerSpec) {
      continue;
    }
    expect_type(*field, WireType::kBytes, "a message", where);
    switch (field->number) {
      case kPieces:
        pieces.push_back(read_piece(field->payload, pieces.size(), where));
        break;
      case kTrainerSpec:
        has_trainer_spec = true;
        check_trainer(field->payload, where);
        break;
      case kNormalizerSpec:
      case kDenormalizerSpec:
        check_normalizer(field->payload, where);
        break;
      default:
        break;
    }
  }
  if (pieces.empty() || !has_trainer_spec) {
    throw FormatError(format(
        "{}: not a SentencePiece model: it has no pieces or no trainer specification", where));
  }
  return pieces;
}

std::string with_control_pieces(std::string_view bytes, std::span<const TokenId> ids) {
  std::string out;
  out.reserve(bytes.size());
  TokenId id = 0;
  FieldReader reader(bytes, "tokenizer");
  while (const auto field = reader.next()) {
    if (field->number == kSelfTestData) {
      continue;
    }
    const bool rewrite =
        field->number == kPieces && std::find(ids.begin(), ids.end(), id) != ids.end();
    id += field->number == kPieces ? 1 : 0;
    if (!rewrite) {
      out += field->encoded;
      continue;
    }
    std::string piece(field->payload);  // of repeated scalar fields the last one counts
    append_tag(piece, kPieceType, WireType::kVarint);
    append_varint(piece, kControl);
    append_message(out, kPieces, piece);
  }
  return out;
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
