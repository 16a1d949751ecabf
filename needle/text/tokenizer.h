// Text to token ids and back, as SentencePiece's BPE does it, from the pieces and scores of its
// model file.
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/text/special_tokens.h"

namespace needle {

enum class PieceType { kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };

// A token and the bytes of the text that it came from: [begin, end). Spans follow one another. The
// dummy prefix's space comes from nowhere: a token that holds only it is empty. Each byte token has
// its own byte; where the text was not UTF-8, the three byte tokens of U+FFFD share one byte (the
// last has it).
struct TokenSpan {
  TokenId id = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
};

enum class SpecialText {
  kPlain,  // "<tools>" or "<tool_call>" inside a text is plain text: no user can forge a separator
  kSpecial,  // it becomes the special id, as in the reference
};

// Cheap to copy (shared, immutable). Safe to use from several threads.
class Tokenizer {
 public:
  // Throws FormatError if the model cannot be read or its special ids are not ours.
  static Tokenizer load(const std::filesystem::path& path);
  static Tokenizer from_bytes(std::string_view model_proto, std::string_view where = "tokenizer");
  // The same from the model and its tables(), both used where they lie: `owner` keeps them there.
  // Tables of another version or of another model are not used, but made anew. Throws FormatError
  // if the tables are damaged. They must lie at a multiple of 8 bytes.
  static Tokenizer from_tables(std::string_view model_proto, std::span<const std::byte> tables,
                               std::shared_ptr<const void> owner,
                               std::string_view where = "tokenizer");

  std::vector<TokenId> encode(std::string_view text,
                              SpecialText special = SpecialText::kPlain) const;
  std::vector<TokenSpan> encode_spans(std::string_view text,
                                      SpecialText special = SpecialText::kPlain) const;
  // Always valid UTF-8: broken byte sequences become U+FFFD. Control ids contribute nothing; an id
  // outside the vocabulary is an Error.
  std::string decode(std::span<const TokenId> ids) const;

  // False where encoding lost something: spaces at the edges or in runs, U+2581, bytes that are not
  // UTF-8.
  bool round_trips(std::string_view text) const;

  TokenId vocab_size() const;
  std::string_view piece(TokenId id) const;  // with U+2581 for a space, "<0x0A>" for a byte
  PieceType piece_type(TokenId id) const;

  std::string_view model_bytes() const;  // the serialised SentencePiece model
  // What from_tables() takes: making it took most of from_bytes' time. Native byte order.
  std::span<const std::byte> tables() const;
  std::string fingerprint() const;  // sha256 of model_bytes

 private:
  friend class TextDecoder;
  friend class TokenEncoder;
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

// Tokenizer::encode for many short texts: keeps its buffers. Not thread-safe.
class TokenEncoder {
 public:
  // Texts of up to `most_bytes` allocate nothing.
  TokenEncoder(Tokenizer tokenizer, std::size_t most_bytes);
  TokenEncoder(TokenEncoder&&) noexcept;
  ~TokenEncoder();

  // Valid until the next call.
  std::span<const TokenId> encode(std::string_view text, SpecialText special = SpecialText::kPlain);

 private:
  struct Buffers;
  Tokenizer tokenizer_;
  std::unique_ptr<Buffers> buffers_;
};

// The text of tokens one by one: what Tokenizer::decode makes of all of them, as far as it is
// certain. A begun character is held back until it is whole or broken. Keep the tokenizer alive.
class TextDecoder {
 public:
  // Allocates nothing as long as the text stays below `most_bytes`.
  explicit TextDecoder(const Tokenizer& tokenizer, std::size_t most_bytes = 0);

  void add(TokenId id);                            // an id outside the vocabulary is an Error
  void finish();                                   // nothing follows: a begun character is broken
  std::string_view text() const { return text_; }  // only ever grows
  std::string take() && { return std::move(text_); }

 private:
  void settle(bool more_may_come);

  const Tokenizer& tokenizer_;
  std::string text_;
  std::array<char, 4> pending_{};  // bytes of a begun character
  std::size_t pending_count_ = 0;
  bool at_start_ = true;  // no text before: a piece loses its dummy prefix
};

}  // namespace needle
