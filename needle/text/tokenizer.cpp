#include "needle/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/bpe.h"
#include "needle/text/model_proto.h"
#include "needle/text/normalize.h"
#include "needle/text/vocabulary.h"

namespace needle {
namespace {

void check_special(const Vocabulary& vocabulary, std::string_view where) {
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
    if (id >= vocabulary.size() || vocabulary.type(id) != expected.type ||
        (!expected.text.empty() && vocabulary.piece(id) != expected.text)) {
      throw FormatError(format(
          "{}: piece {} must be the {} symbol{}{}, but it is '{}'; expected the ids pad 0, eos 1, "
          "bos 2, unk 3, <tool_call> 4, <tools> 5",
          where, id, expected.role, expected.text.empty() ? "" : " ", expected.text,
          id < vocabulary.size() ? vocabulary.piece(id) : std::string_view("missing")));
    }
  }
}

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

// The text of a piece with its spaces.
void append_unescaped(std::string& text, std::string_view piece) {
  while (true) {
    const std::size_t at = piece.find(kSpaceMark);
    text += piece.substr(0, at);
    if (at == std::string_view::npos) {
      return;
    }
    text += ' ';
    piece.remove_prefix(at + kSpaceMark.size());
  }
}

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Whether some bytes would complete `begun`, which is no whole character, to one.
bool begins_character(std::string_view begun) {
  // 0x80, 0x90, 0xA0 and 0xBF reach both sides of every restriction on the second byte.
  for (const char second : {'\x80', '\x90', '\xA0', '\xBF'}) {
    std::array<char, 7> candidate{};
    std::ranges::copy(begun, candidate.begin());
    candidate[begun.size()] = second;
    candidate[begun.size() + 1] = candidate[begun.size() + 2] = '\x80';
    if (utf8_length_at({candidate.data(), begun.size() + 3}, 0) > begun.size()) {
      return true;
    }
  }
  return false;
}

}  // namespace

struct Tokenizer::Impl {
  // Copies the model and makes its tables.
  Impl(std::string_view model_proto, std::string_view where)
      : own_bytes(model_proto),
        own_tables(make_vocabulary(own_bytes, where)),
        vocabulary(*Vocabulary::view(own_tables, own_bytes, where)) {
    check_special(vocabulary, where);
  }
  // Uses both where they lie.
  Impl(const Vocabulary& stored, std::span<const std::byte> tables,
       std::shared_ptr<const void> keep_alive, std::string_view where)
      : owner(std::move(keep_alive)), stored_tables(tables), vocabulary(stored) {
    check_special(vocabulary, where);
  }

  std::string own_bytes;  // either these two,
  std::vector<std::byte> own_tables;
  std::shared_ptr<const void> owner;  // or what holds them elsewhere
  std::span<const std::byte> stored_tables = own_tables;
  Vocabulary vocabulary;
  Bpe bpe{vocabulary};

  void normalize_to(NormalizedText& result, std::string_view text, SpecialText special,
                    bool want_origins) const {
    NEEDLE_CHECK(text.size() < kMaxTextBytes, "cannot encode a text of {} bytes; the limit is {}",
                 text.size(), kMaxTextBytes);
    normalize(text, bpe.symbols(),
              {.add_dummy_prefix = vocabulary.head->add_dummy_prefix != 0,
               .remove_extra_whitespaces = removes_extra_whitespaces(),
               .special = special == SpecialText::kSpecial,
               .want_origins = want_origins},
              result);
  }
  bool drops_first_space() const {
    return vocabulary.head->add_dummy_prefix != 0 || removes_extra_whitespaces();
  }
  bool removes_extra_whitespaces() const { return vocabulary.head->remove_extra_whitespaces != 0; }
  void check_id(TokenId id) const {
    NEEDLE_CHECK(id >= 0 && static_cast<std::size_t>(id) < vocabulary.size(),
                 "token {} is outside the vocabulary of {}", id, vocabulary.size());
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  return from_bytes(read_file(path), path.string());
}

Tokenizer Tokenizer::from_bytes(std::string_view model_proto, std::string_view where) {
  Tokenizer tokenizer;
  tokenizer.impl_ = std::make_shared<const Impl>(model_proto, where);
  return tokenizer;
}

Tokenizer Tokenizer::from_tables(std::string_view model_proto, std::span<const std::byte> tables,
                                 std::shared_ptr<const void> owner, std::string_view where) {
  const auto vocabulary = Vocabulary::view(tables, model_proto, where);
  if (!vocabulary) {
    return from_bytes(model_proto, where);
  }
  Tokenizer tokenizer;
  tokenizer.impl_ = std::make_shared<const Impl>(*vocabulary, tables, std::move(owner), where);
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, SpecialText special) const {
  NormalizedText normalized;
  impl_->normalize_to(normalized, text, special, false);
  std::vector<TokenId> ids;
  ids.reserve(normalized.text.size() / 3 + 4);
  Bpe::Workspace work;
  impl_->bpe.encode(normalized.text, special == SpecialText::kSpecial, work,
                    [&](const BpeToken& token) { ids.push_back(token.id); });
  return ids;
}

std::vector<TokenSpan> Tokenizer::encode_spans(std::string_view text, SpecialText special) const {
  NormalizedText normalized;
  impl_->normalize_to(normalized, text, special, true);
  Bpe::Workspace work;
  std::vector<TokenSpan> spans;
  spans.reserve(normalized.text.size() / 3 + 4);
  const bool specials = special == SpecialText::kSpecial;
  impl_->bpe.encode(normalized.text, specials, work, [&](const BpeToken& token) {
    const std::size_t begin = normalized.origins[token.begin];
    const std::size_t end = normalized.origins[token.end];
    TokenSpan span{.id = token.id, .begin = begin, .end = end};
    if (token.byte >= 0) {  // each byte token has its own byte, U+FFFD's last one the broken one
      const auto byte = static_cast<std::size_t>(token.byte);
      const bool last = token.begin + byte + 1 == token.end;
      const bool aligned = end - begin == token.end - token.begin;
      span.begin = aligned ? begin + byte : begin;
      span.end = aligned ? begin + byte + 1 : (last ? end : begin);
    }
    spans.push_back(span);
  });
  return spans;
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
  TextDecoder decoder(*this, 4 * ids.size());
  for (const TokenId id : ids) {
    decoder.add(id);
  }
  decoder.finish();
  return std::move(decoder).take();
}

struct TokenEncoder::Buffers {
  NormalizedText normalized;
  Bpe::Workspace work;
  std::vector<TokenId> ids;
};

TokenEncoder::TokenEncoder(Tokenizer tokenizer, std::size_t most_bytes)
    : tokenizer_(std::move(tokenizer)),
      buffers_(std::make_unique<Buffers>(Buffers{.work = Bpe::Workspace(most_bytes + 1)})) {
  // A space has three bytes there, and each byte may become a token.
  buffers_->normalized.text.reserve(kSpaceMark.size() * (most_bytes + 1));
  buffers_->ids.reserve(kSpaceMark.size() * (most_bytes + 1));
}
TokenEncoder::TokenEncoder(TokenEncoder&&) noexcept = default;
TokenEncoder::~TokenEncoder() = default;

std::span<const TokenId> TokenEncoder::encode(std::string_view text, SpecialText special) {
  const Tokenizer::Impl& impl = *tokenizer_.impl_;
  Buffers& own = *buffers_;
  impl.normalize_to(own.normalized, text, special, false);
  own.ids.clear();
  impl.bpe.encode(own.normalized.text, special == SpecialText::kSpecial, own.work,
                  [&](const BpeToken& token) { own.ids.push_back(token.id); });
  return own.ids;
}

TextDecoder::TextDecoder(const Tokenizer& tokenizer, std::size_t most_bytes)
    : tokenizer_(tokenizer) {
  text_.reserve(most_bytes);
}

void TextDecoder::add(TokenId id) {
  const Tokenizer::Impl& impl = *tokenizer_.impl_;
  impl.check_id(id);
  const std::string_view piece = impl.vocabulary.piece(static_cast<std::size_t>(id));
  const PieceType type = impl.vocabulary.type(static_cast<std::size_t>(id));
  if (type == PieceType::kByte) {
    pending_[pending_count_++] = static_cast<char>(byte_piece_value(piece));
    settle(/*more_may_come=*/true);
    return;
  }
  settle(/*more_may_come=*/false);  // only bytes that follow one another make characters
  at_start_ = at_start_ && text_.empty();
  if (type == PieceType::kUnknown) {
    const std::string_view shown = impl.vocabulary.unk_surface;  // may be anything
    text_ += is_valid_utf8(shown) ? std::string(shown) : replace_invalid_utf8(shown);
  } else if (type != PieceType::kControl) {
    std::string_view shown = piece;
    if (at_start_ && shown.starts_with(kSpaceMark) && impl.drops_first_space()) {
      shown.remove_prefix(kSpaceMark.size());
      at_start_ = impl.removes_extra_whitespaces();
    }
    append_unescaped(text_, shown);
  }
}

void TextDecoder::finish() { settle(/*more_may_come=*/false); }

// Whole characters go to the text, broken bytes as U+FFFD; what more bytes may complete stays.
void TextDecoder::settle(bool more_may_come) {
  while (pending_count_ > 0) {
    const std::string_view pending(pending_.data(), pending_count_);
    std::size_t used = utf8_length_at(pending, 0);
    if (used > 0) {
      text_ += pending.substr(0, used);
    } else if (more_may_come && begins_character(pending)) {
      return;
    } else {
      text_ += kReplacement;
      used = 1;
    }
    pending_count_ -= std::min(used, pending_count_);
    std::memmove(pending_.data(), pending_.data() + used, pending_.size() - used);
  }
}

bool Tokenizer::round_trips(std::string_view text) const { return decode(encode(text)) == text; }

TokenId Tokenizer::vocab_size() const { return static_cast<TokenId>(impl_->vocabulary.size()); }

std::string_view Tokenizer::piece(TokenId id) const {
  impl_->check_id(id);
  return impl_->vocabulary.piece(static_cast<std::size_t>(id));
}

PieceType Tokenizer::piece_type(TokenId id) const {
  impl_->check_id(id);
  return impl_->vocabulary.type(static_cast<std::size_t>(id));
}

std::string_view Tokenizer::model_bytes() const { return impl_->vocabulary.model; }

std::span<const std::byte> Tokenizer::tables() const { return impl_->stored_tables; }

std::string Tokenizer::fingerprint() const { return sha256_hex(model_bytes()); }

}  // namespace needle
