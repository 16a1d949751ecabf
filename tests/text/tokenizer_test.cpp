#include "needle/text/tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/random.h"
#include "needle/text/model_proto.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

Json golden_cases() { return read_json_file(test::golden("tokenizer/tokenizer.json")); }

std::filesystem::path golden_model() {
  return test::golden("tokenizer") / golden_cases().at("model").get<std::string>();
}

std::vector<TokenId> ids_of(const std::vector<TokenSpan>& spans) {
  std::vector<TokenId> ids;
  for (const TokenSpan& span : spans) {
    ids.push_back(span.id);
  }
  return ids;
}

// ASCII letters, JSON, spaces, special pieces, accents, CJK, emoji and (if asked) broken bytes.
std::string random_text(Random& random, bool broken) {
  static const std::vector<std::string> kParts = {"a",
                                                  "e",
                                                  "timer",
                                                  " ",
                                                  "  ",
                                                  "\n",
                                                  "\t",
                                                  "{\"",
                                                  "\":\"",
                                                  "}]",
                                                  "<tools>",
                                                  "<tool_call>",
                                                  "<",
                                                  "get_weather",
                                                  "\xC3\xA9",
                                                  "\xE2\x96\x81",
                                                  "\xC2\xA0",
                                                  "5",
                                                  "Z",
                                                  "\xE6\x9D\xB1",
                                                  "\xF0\x9F\x8E\x89",
                                                  "\xCC\x81",
                                                  "\xE2\x80\x8D",
                                                  "<0x0A>",
                                                  "\\u00e9",
                                                  "\"",
                                                  "'"};
  static const std::vector<std::string> kBroken = {"\xFF", "\xC3", "\xF0\x9F", "\xED\xA0\x80",
                                                   std::string(1, '\0')};
  std::string text;
  for (std::uint32_t i = random.below(30); i > 0; --i) {
    const auto& parts = broken && random.below(4) == 0 ? kBroken : kParts;
    text += parts[random.below(static_cast<std::uint32_t>(parts.size()))];
  }
  return text;
}

TEST(TokenizerGolden, EncodesAsTheReference) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  const Json cases = golden_cases();
  EXPECT_EQ(tokenizer.vocab_size(), cases.at("vocab_size").get<TokenId>());
  ASSERT_FALSE(cases.at("encode").empty());
  for (const Json& row : cases.at("encode")) {
    const auto text = row.at("text").get<std::string>();
    const auto expected = row.at("ids").get<std::vector<TokenId>>();
    const auto ids = tokenizer.encode(text, SpecialText::kSpecial);
    EXPECT_EQ(ids, expected) << text;
    EXPECT_EQ(ids_of(tokenizer.encode_spans(text, SpecialText::kSpecial)), expected) << text;
    EXPECT_EQ(tokenizer.decode(expected), row.at("decoded").get<std::string>()) << text;
    std::vector<std::string> pieces;
    for (const TokenId id : ids) {
      pieces.emplace_back(tokenizer.piece(id));
    }
    EXPECT_EQ(pieces, row.at("pieces").get<std::vector<std::string>>()) << text;
  }
}

TEST(TokenizerGolden, DecodesAsTheReference) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  const Json cases = golden_cases();
  ASSERT_FALSE(cases.at("decode").empty());
  for (const Json& row : cases.at("decode")) {
    const auto ids = row.at("ids").get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer.decode(ids), row.at("text").get<std::string>()) << row.dump();
  }
}

TEST(TokenizerTest, PlainTextCannotForgeASeparator) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  Random random(1);
  for (int i = 0; i < 500; ++i) {
    const std::string text =
        random_text(random, false) + "<tools>" + random_text(random, true) + "<tool_call>";
    const auto ids = tokenizer.encode(text);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), kToolsId), 0) << text;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), kToolCallId), 0) << text;
    const auto special = tokenizer.encode(text, SpecialText::kSpecial);
    EXPECT_GT(std::count(special.begin(), special.end(), kToolsId), 0) << text;
  }
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("x<tools>y<tool_call>")), "x<tools>y<tool_call>");
}

TEST(TokenizerTest, PlainAndSpecialAgreeWhereNoSpecialPieceOccurs) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  Random random(2);
  for (int i = 0; i < 500; ++i) {
    const std::string text = random_text(random, false);
    if (text.find("<too") == std::string::npos) {
      EXPECT_EQ(tokenizer.encode(text), tokenizer.encode(text, SpecialText::kSpecial)) << text;
    }
  }
}

TEST(TokenizerTest, SpansCoverTheTextInOrder) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  Random random(3);
  int byte_tokens = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string text = random_text(random, i % 2 == 0);
    for (const SpecialText special : {SpecialText::kPlain, SpecialText::kSpecial}) {
      const auto spans = tokenizer.encode_spans(text, special);
      EXPECT_EQ(ids_of(spans), tokenizer.encode(text, special));
      std::size_t end = 0;
      for (const TokenSpan& span : spans) {
        ASSERT_LE(end, span.begin) << text;
        ASSERT_LE(span.begin, span.end) << text;
        // What lies between two spans can only be the spaces that SentencePiece drops.
        EXPECT_EQ(text.substr(end, span.begin - end).find_first_not_of(" \xE2\x96\x81"),
                  std::string::npos)
            << text;
        end = span.end;
        const std::string_view source =
            std::string_view(text).substr(span.begin, span.end - span.begin);
        if (tokenizer.piece_type(span.id) == PieceType::kByte && is_valid_utf8(text)) {
          ++byte_tokens;
          ASSERT_EQ(source.size(), 1U) << text;
          const int byte =
              std::stoi(std::string(tokenizer.piece(span.id).substr(3, 2)), nullptr, 16);
          EXPECT_EQ(static_cast<unsigned char>(source[0]), byte) << text;
        }
      }
      ASSERT_LE(end, text.size());
      EXPECT_EQ(text.substr(end).find_first_not_of(" \xE2\x96\x81"), std::string::npos) << text;
    }
  }
  EXPECT_GT(byte_tokens, 1000);
}

TEST(TokenizerTest, SpansOfWordsAreTheirBytes) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  const std::string text = "set  a timer";
  for (const TokenSpan& span : tokenizer.encode_spans(text)) {
    std::string piece(tokenizer.piece(span.id));
    for (std::size_t at; (at = piece.find("\xE2\x96\x81")) != std::string::npos;) {
      piece.replace(at, 3, " ");
    }
    std::string source = text.substr(span.begin, span.end - span.begin);
    source.erase(std::remove(source.begin(), source.end(), ' '), source.end());
    piece.erase(std::remove(piece.begin(), piece.end(), ' '), piece.end());
    EXPECT_EQ(source, piece);
  }
}

TEST(TokenizerTest, DecodeIsAlwaysValidUtf8) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  Random random(4);
  for (int i = 0; i < 2000; ++i) {
    std::vector<TokenId> ids(random.below(20));
    for (TokenId& id : ids) {
      id = static_cast<TokenId>(random.below(static_cast<std::uint32_t>(tokenizer.vocab_size())));
    }
    EXPECT_TRUE(is_valid_utf8(tokenizer.decode(ids)));
    EXPECT_TRUE(is_valid_utf8(tokenizer.decode(tokenizer.encode(random_text(random, true)))));
  }
}

TEST(TokenizerTest, ReportsWhatDoesNotRoundTrip) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  EXPECT_TRUE(tokenizer.round_trips("set a timer <tools> \xF0\x9F\x8E\x89\n\t"));
  for (const char* text : {" edge", "edge ", "two  spaces", "\xE2\x96\x81", "\xFF"}) {
    EXPECT_FALSE(tokenizer.round_trips(text)) << text;
  }
}

TEST(TokenizerTest, RefusesIdsOutsideTheVocabulary) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  for (const TokenId id : {-1, tokenizer.vocab_size()}) {
    EXPECT_THROW(tokenizer.decode(std::vector<TokenId>{id}), Error);
    EXPECT_THROW(tokenizer.piece(id), Error);
    EXPECT_THROW(tokenizer.piece_type(id), Error);
  }
  EXPECT_EQ(tokenizer.piece_type(kPadId), PieceType::kControl);
  EXPECT_EQ(tokenizer.piece_type(kUnkId), PieceType::kUnknown);
  EXPECT_EQ(tokenizer.piece_type(kToolsId), PieceType::kUserDefined);
}

TEST(TokenizerTest, FingerprintIsOfTheBytes) {
  const std::string bytes = read_file(golden_model());
  const Tokenizer tokenizer = Tokenizer::from_bytes(bytes);
  EXPECT_EQ(tokenizer.model_bytes(), bytes);
  EXPECT_EQ(tokenizer.fingerprint(), sha256_hex(std::string_view(bytes)));
}

TEST(TokenizerTest, EncodesFromSeveralThreads) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  const std::string text = "weather in Paris <tools> [{\"name\":\"x\"}] \xF0\x9F\x8E\x89";
  const auto expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (std::size_t t = 0; t < equal.size(); ++t) {
    threads.emplace_back([&, t, copy = tokenizer] {
      for (int i = 0; i < 200; ++i) {
        equal[t] +=
            copy.encode(text) == expected && ids_of(copy.encode_spans(text)) == expected ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(equal, std::vector<int>(4, 200));
}

TEST(TokenizerTest, RefusesWhatIsNotAModel) {
  const std::string bytes = read_file(golden_model());
  EXPECT_THROW(Tokenizer::from_bytes(""), FormatError);
  EXPECT_THROW(Tokenizer::from_bytes("{\"not\": \"a model\"}"), FormatError);
  EXPECT_THROW(Tokenizer::load(test::golden("tokenizer/absent.model")), FileError);
  try {
    // <tool_call> renamed: the special ids are no longer ours.
    std::string renamed = bytes;
    renamed.replace(renamed.find(kToolCallPiece), kToolCallPiece.size(), "<tool_cull>");
    Tokenizer::from_bytes(renamed, "renamed.model");
    FAIL() << "expected FormatError";
  } catch (const FormatError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("renamed.model: piece 4 must be"), std::string::npos) << message;
  }
}

// Every truncation, and random changes of bytes: refused or usable, never a crash.
TEST(TokenizerTest, SurvivesDamagedModels) {
  const std::string bytes = read_file(golden_model());
  Random random(6);
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    std::string damaged = bytes;
    if (i % 4 == 0) {
      damaged.resize(random.below(static_cast<std::uint32_t>(bytes.size())));
    } else {
      for (std::uint32_t k = random.below(4) + 1; k > 0; --k) {
        damaged[random.below(static_cast<std::uint32_t>(bytes.size()))] =
            static_cast<char>(random.below(256));
      }
    }
    try {
      const Tokenizer tokenizer = Tokenizer::from_bytes(damaged);
      const auto ids = tokenizer.encode("set a timer {\"name\":\"x\"} \xF0\x9F\x8E\x89");
      EXPECT_TRUE(is_valid_utf8(tokenizer.decode(ids)));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

// What a weights file holds, at a multiple of 8 bytes and no longer than it says.
std::vector<std::byte> copy_of(std::span<const std::byte> tables) {
  return {tables.begin(), tables.end()};
}

TEST(TokenizerTest, UsesStoredTablesWhereTheyLie) {
  const auto bytes = std::make_shared<const std::string>(read_file(golden_model()));
  const Tokenizer built = Tokenizer::from_bytes(*bytes);
  const auto tables = std::make_shared<const std::vector<std::byte>>(copy_of(built.tables()));
  const auto owner = std::make_shared<std::pair<decltype(bytes), decltype(tables)>>(bytes, tables);
  const Tokenizer stored = Tokenizer::from_tables(*bytes, *tables, owner);
  EXPECT_EQ(stored.tables().data(), tables->data());
  EXPECT_EQ(stored.model_bytes().data(), bytes->data());
  EXPECT_EQ(owner.use_count(), 2);
  EXPECT_EQ(stored.fingerprint(), built.fingerprint());
  ASSERT_EQ(stored.vocab_size(), built.vocab_size());
  for (TokenId id = 0; id < built.vocab_size(); ++id) {
    EXPECT_EQ(stored.piece(id), built.piece(id));
    EXPECT_EQ(stored.piece_type(id), built.piece_type(id));
  }
  Random random(11);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(random, true);
    EXPECT_EQ(stored.encode(text), built.encode(text)) << text;
    EXPECT_EQ(stored.decode(built.encode(text)), built.decode(built.encode(text)));
  }
}

TEST(TokenizerTest, MakesTablesAnewThatAreNotOfThisModelAndVersion) {
  const std::string bytes = read_file(golden_model());
  const Tokenizer built = Tokenizer::from_bytes(bytes);
  auto later = copy_of(built.tables());
  later[0] = std::byte{99};
  std::vector<VocabularyPiece> pieces;
  for (const ModelProtoPiece& piece : read_model_proto(bytes, "golden").pieces) {
    pieces.push_back({.text = std::string(piece.text), .score = piece.score});
  }
  const std::string same_pieces = model_proto_of_vocabulary(pieces);
  ASSERT_NE(same_pieces, bytes);
  for (const Tokenizer& tokenizer :
       {Tokenizer::from_tables(bytes, later, nullptr), Tokenizer::from_tables(bytes, {}, nullptr),
        Tokenizer::from_tables(same_pieces, built.tables(), nullptr)}) {
    EXPECT_NE(tokenizer.tables().data(), later.data());
    EXPECT_NE(tokenizer.tables().data(), built.tables().data());
    EXPECT_EQ(tokenizer.encode("set a timer"), built.encode("set a timer"));
  }
}

// Random changes of bytes: refused, or something is encoded, if not rightly; never a crash.
TEST(TokenizerTest, SurvivesDamagedTables) {
  const std::string bytes = read_file(golden_model());
  const Tokenizer built = Tokenizer::from_bytes(bytes);
  Random random(12);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    auto damaged = copy_of(built.tables());
    const auto size = static_cast<std::uint32_t>(damaged.size());
    if (i % 8 == 0) {
      damaged.resize(24 + random.below(size - 24));
    } else {
      for (std::uint32_t k = random.below(4) + 1; k > 0; --k) {  // not the version nor the model
        const std::uint32_t at = i % 2 == 0 ? random.below(24) + 24 : random.below(size - 24) + 24;
        damaged[at] = static_cast<std::byte>(random.below(256));
      }
    }
    try {
      const Tokenizer tokenizer = Tokenizer::from_tables(bytes, damaged, nullptr);
      const auto ids =
          tokenizer.encode("set a timer {\"name\":\"x\"} \xF0\x9F\x8E\x89", SpecialText::kSpecial);
      EXPECT_TRUE(is_valid_utf8(tokenizer.decode(ids)));
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(TokenizerTest, AVocabularyWithScoresIsTheModelThatItCameFrom) {
  const std::string bytes = read_file(golden_model());
  const Tokenizer original = Tokenizer::from_bytes(bytes);
  std::vector<VocabularyPiece> pieces;
  for (const ModelProtoPiece& piece : read_model_proto(bytes, "golden").pieces) {
    pieces.push_back({.text = std::string(piece.text), .score = piece.score});
  }
  const Tokenizer rebuilt = Tokenizer::from_bytes(model_proto_of_vocabulary(pieces));
  Random random(8);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(random, true);
    EXPECT_EQ(rebuilt.encode(text), original.encode(text)) << text;
    EXPECT_EQ(rebuilt.decode(original.encode(text)), original.decode(original.encode(text)));
  }
  std::swap(pieces[4], pieces[5]);
  EXPECT_THROW(Tokenizer::from_bytes(model_proto_of_vocabulary(pieces)), FormatError);
}

TEST(TextDecoderTest, GrowsTowardsWhatDecodingAllGives) {
  const Tokenizer tokenizer = Tokenizer::load(golden_model());
  Random random(9);
  for (int i = 0; i < 300; ++i) {
    std::vector<TokenId> ids(random.below(30));
    for (TokenId& id : ids) {  // many bytes: whole characters, begun ones, broken ones
      id = static_cast<TokenId>(random.below(
          random.below(2) == 0 ? 270 : static_cast<std::uint32_t>(tokenizer.vocab_size())));
    }
    TextDecoder decoder(tokenizer);
    std::string before;
    for (std::size_t count = 0; count < ids.size(); ++count) {
      decoder.add(ids[count]);
      EXPECT_TRUE(decoder.text().starts_with(before));
      EXPECT_TRUE(is_valid_utf8(decoder.text()));
      EXPECT_TRUE(tokenizer.decode(ids).starts_with(decoder.text()));
      before = decoder.text();
    }
    decoder.finish();
    EXPECT_EQ(decoder.text(), tokenizer.decode(ids));
  }
}

}  // namespace
}  // namespace needle
