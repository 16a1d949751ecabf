// The project's own tokenizer against SentencePiece, which it replaces: same ids, spans and texts.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include "needle/calls/utf8.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/random.h"
#include "needle/text/tokenizer.h"
#include "needle/text/tokenizer_trainer.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

constexpr int kStrings = 100'000;  // over all vocabularies

// The model with <tool_call> and <tools> as control symbols, which match no text.
std::string with_plain_marks(std::string model) {
  for (const std::string_view mark : {kToolCallPiece, kToolsPiece}) {
    const std::size_t type = model.find('\x18', model.find(mark) + mark.size());
    EXPECT_EQ(model.at(type + 1), 4);  // user defined
    model[type + 1] = 3;               // control
  }
  return model;
}

class Oracle {
 public:
  explicit Oracle(const std::string& model) {
    EXPECT_TRUE(special_.LoadFromSerializedProto(model).ok());
    EXPECT_TRUE(plain_.LoadFromSerializedProto(with_plain_marks(model)).ok());
  }

  std::vector<TokenSpan> encode(std::string_view text, SpecialText special) const {
    const auto& processor = special == SpecialText::kSpecial ? special_ : plain_;
    sentencepiece::ImmutableSentencePieceText pieces;
    EXPECT_TRUE(processor.Encode(text, pieces.mutable_proto()).ok());
    std::vector<TokenSpan> spans;
    std::size_t first_byte = 0;
    for (std::size_t i = 0; i < pieces.pieces_size(); ++i) {
      const auto piece = pieces.pieces(static_cast<int>(i));
      spans.push_back({static_cast<TokenId>(piece.id()), piece.begin(), piece.end()});
      if (!processor.IsByte(static_cast<int>(piece.id()))) {
        first_byte = i + 1;
      } else if (piece.end() > piece.begin()) {
        // The last byte token of a character has all its bytes; ours have one each.
        const std::size_t count = i + 1 - first_byte;
        for (std::size_t k = 0; k < count && count == piece.end() - piece.begin(); ++k) {
          spans[first_byte + k].begin = piece.begin() + k;
          spans[first_byte + k].end = piece.begin() + k + 1;
        }
        first_byte = i + 1;
      }
    }
    return spans;
  }

  std::string decode(const std::vector<TokenId>& ids) const {
    std::string text;
    EXPECT_TRUE(special_.Decode(ids, &text).ok());
    return is_valid_utf8(text) ? text : replace_invalid_utf8(text);
  }

 private:
  sentencepiece::SentencePieceProcessor special_;
  sentencepiece::SentencePieceProcessor plain_;
};

// Pieces of the vocabulary, their fragments, words, JSON, spaces of all kinds and broken bytes.
class TextMaker {
 public:
  TextMaker(const Tokenizer& tokenizer, std::uint32_t seed)
      : tokenizer_(tokenizer), random_(seed) {}

  std::string next() {
    std::string text;
    const std::uint32_t kind = random_.below(8);
    const std::uint32_t parts = random_.below(100) == 0 ? 300 : random_.below(24);
    for (std::uint32_t i = 0; i < parts; ++i) {
      text += part(kind);
    }
    return text;
  }

 private:
  std::string part(std::uint32_t kind) {
    if (kind == 0) {  // one letter again and again: ties, and segments too long to scan
      return random_.below(40) == 0 ? "b" : "a";
    }
    if (kind == 1) {  // any bytes
      return std::string(1, static_cast<char>(random_.below(256)));
    }
    if (kind == 2) {  // ASCII
      return std::string(1, static_cast<char>(32 + random_.below(95)));
    }
    if (kind == 3 || random_.below(3) == 0) {
      return fragment();
    }
    static const std::vector<std::string> kParts = {" ",
                                                    "  ",
                                                    "\t",
                                                    "\n",
                                                    "\xC2\xA0",
                                                    "\xE3\x80\x80",
                                                    "\xE2\x96\x81",
                                                    "\xEF\xBF\xBD",
                                                    "<tools>",
                                                    "<tool_call>",
                                                    "<tool",
                                                    "s>",
                                                    "<0x0A>",
                                                    "<s>",
                                                    "</s>",
                                                    "<unk>",
                                                    "<pad>",
                                                    "get_weather",
                                                    "Play",
                                                    "play",
                                                    "timer",
                                                    "12",
                                                    "3.5e-7",
                                                    "-",
                                                    "{\"name\":\"",
                                                    "\":\"",
                                                    "\",\"arguments\":{\"",
                                                    "\"}}]",
                                                    "[{\"name\":\"",
                                                    "\"",
                                                    "\":",
                                                    "\\u00e9",
                                                    "\xC3\xA9",
                                                    "e\xCC\x81",
                                                    "\xE6\x9D\xB1\xE4\xBA\xAC",
                                                    "\xF0\x9F\x8E\x89",
                                                    "\xE2\x80\x8D",
                                                    "\xD0\x9F\xD1\x80\xD0\xB8",
                                                    "\xC3",
                                                    "\xF0\x9F",
                                                    "\xED\xA0\x80",
                                                    "\xC0\xAF",
                                                    "\xFF",
                                                    std::string(1, '\0')};
    return kParts[random_.below(static_cast<std::uint32_t>(kParts.size()))];
  }

  std::string fragment() {
    const auto id = random_.below(static_cast<std::uint32_t>(tokenizer_.vocab_size()));
    std::string piece(tokenizer_.piece(static_cast<TokenId>(id)));
    if (random_.below(2) == 0 && piece.starts_with("\xE2\x96\x81")) {
      piece.replace(0, 3, " ");
    }
    const auto size = static_cast<std::uint32_t>(piece.size());
    return random_.below(4) == 0 ? piece.substr(random_.below(size)) : piece;
  }

  const Tokenizer& tokenizer_;
  Random random_;
};

void expect_same(const std::string& model, int strings, std::uint32_t seed) {
  const Tokenizer tokenizer = Tokenizer::from_bytes(model);
  const Oracle oracle(model);
  TextMaker maker(tokenizer, seed);
  Random random(seed + 1);
  std::size_t tokens = 0;
  for (int i = 0; i < strings; ++i) {
    const std::string text = maker.next();
    const auto special = i % 2 == 0 ? SpecialText::kPlain : SpecialText::kSpecial;
    const auto expected = oracle.encode(text, special);
    const auto spans = tokenizer.encode_spans(text, special);
    std::vector<TokenId> ids;
    for (const TokenSpan& span : expected) {
      ids.push_back(span.id);
    }
    ASSERT_EQ(tokenizer.encode(text, special), ids) << "string " << i << ": " << text;
    ASSERT_EQ(spans.size(), expected.size()) << text;
    for (std::size_t k = 0; k < spans.size(); ++k) {
      ASSERT_EQ(spans[k].id, expected[k].id) << text;
      ASSERT_EQ(spans[k].begin, expected[k].begin) << "token " << k << " of " << text;
      ASSERT_EQ(spans[k].end, expected[k].end) << "token " << k << " of " << text;
    }
    ASSERT_EQ(tokenizer.decode(ids), oracle.decode(ids)) << text;
    tokens += ids.size();
    // Ids that no text gives, in any order.
    for (TokenId& id : ids) {
      id = static_cast<TokenId>(random.below(
          static_cast<std::uint32_t>(random.below(2) == 0 ? 300 : tokenizer.vocab_size())));
    }
    ASSERT_EQ(tokenizer.decode(ids), oracle.decode(ids)) << "string " << i;
  }
  EXPECT_GT(tokens, static_cast<std::size_t>(strings) * 5);
}

std::string golden_model() {
  const Json cases = read_json_file(test::golden("tokenizer/tokenizer.json"));
  return read_file(test::golden("tokenizer") / cases.at("model").get<std::string>());
}

// Words of several scripts, so that merges of many lengths with equal and different counts arise.
std::string trained_model(const TokenizerTrainerConfig& config) {
  Random random(11);
  std::vector<std::string> texts;
  static const std::vector<std::string> kSyllables = {"a",
                                                      "la",
                                                      "ma",
                                                      "play",
                                                      "set",
                                                      "ing",
                                                      "tion",
                                                      "e",
                                                      "er",
                                                      "\xC3\xA9",
                                                      "\xD0\xBF\xD1\x80",
                                                      "\xE6\x9D\xB1",
                                                      "1",
                                                      "20",
                                                      "_",
                                                      "-",
                                                      ".",
                                                      "\"",
                                                      ":",
                                                      "{",
                                                      "}"};
  for (int i = 0; i < 400; ++i) {
    std::string text;
    for (int k = 0; k < 60; ++k) {
      text += kSyllables[random.below(static_cast<std::uint32_t>(kSyllables.size()))];
      text += random.below(3) == 0 ? " " : "";
    }
    texts.push_back(text);
  }
  return std::string(train_tokenizer(texts, config).tokenizer.model_bytes());
}

TEST(SentencePieceOracleIntegration, GoldenVocabularyEncodesAndDecodesTheSame) {
  expect_same(golden_model(), kStrings / 4, 1);
}

TEST(SentencePieceOracleIntegration, TrainedVocabularyEncodesAndDecodesTheSame) {
  expect_same(trained_model({.vocab_size = 1200, .num_threads = 1}), kStrings / 4, 2);
}

TEST(SentencePieceOracleIntegration, VocabularyWithJsonSymbolsEncodesAndDecodesTheSame) {
  expect_same(trained_model({.vocab_size = 1200, .json_symbols = {"default"}, .num_threads = 1}),
              kStrings / 4, 3);
}

// Symbols that begin inside one another and inside the dummy prefix.
TEST(SentencePieceOracleIntegration, OverlappingSymbolsEncodeAndDecodeTheSame) {
  expect_same(trained_model({.vocab_size = 900,
                             .json_symbols = {"\":\"", "\"", "\"}}", "\xE2\x96\x81[{\"", "{\"name",
                                              "a", "ala", "\xE2\x96\x81pla", "\xC3\xA9t"},
                             .num_threads = 1}),
              kStrings / 4, 4);
}

// One segment of 200,000 characters would take hours if each merge looked at all of them.
TEST(SentencePieceOracleIntegration, LongRunsWithoutSpacesStayFast) {
  const std::string model = golden_model();
  const Oracle oracle(model);
  const Tokenizer tokenizer = Tokenizer::from_bytes(model);
  std::string text;
  Random random(5);
  for (int i = 0; i < 200'000; ++i) {
    text.push_back(static_cast<char>('a' + random.below(4)));
  }
  const auto expected = oracle.encode(text, SpecialText::kPlain);
  const auto ids = tokenizer.encode(text);
  ASSERT_EQ(ids.size(), expected.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ASSERT_EQ(ids[i], expected[i].id) << i;
  }
}

}  // namespace
}  // namespace needle
