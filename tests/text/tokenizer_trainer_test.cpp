#include "needle/text/tokenizer_trainer.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

struct Corpus {
  std::vector<std::string> texts;    // queries, compact tools, compact answers
  std::vector<std::string> tools;    // compact
  std::vector<std::string> answers;  // compact
};

// Sixty rows of made-up words.
Corpus corpus() {
  Random random(9);
  const auto word = [&random] {
    std::string text;
    for (std::uint32_t i = random.below(3) + 1; i > 0; --i) {
      text += "bdfgklmnprst"[random.below(12)];
      text += "aeiou"[random.below(5)];
    }
    return text;
  };
  const auto words = [&](std::uint32_t count) {
    std::string text = word();
    while (--count > 0) {
      text += " " + word();
    }
    return JsonValue::string(text);
  };
  Corpus result;
  for (int row = 0; row < 60; ++row) {
    JsonValue parameters = JsonValue::object();
    JsonValue arguments = JsonValue::object();
    for (std::uint32_t i = random.below(4) + 1; i > 0; --i) {
      const std::string name = word();
      parameters.set(name,
                     JsonValue::object({{"type", JsonValue::string("string")},
                                        {"description", words(4)},
                                        {"required", JsonValue::boolean(random.below(2) == 0)}}));
      arguments.set(name, words(2));
    }
    const JsonValue name = JsonValue::string(word() + "_" + word());
    const JsonValue tool =
        JsonValue::object({{"name", name}, {"description", words(5)}, {"parameters", parameters}});
    const JsonValue call = JsonValue::object({{"name", name}, {"arguments", arguments}});
    result.tools.push_back(write_compact(JsonValue::array({tool})));
    result.answers.push_back(write_compact(JsonValue::array({call})));
    result.texts.push_back(words(6).as_string());
    result.texts.push_back(result.tools.back());
    result.texts.push_back(result.answers.back());
  }
  return result;
}

std::size_t count_tokens(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  std::size_t count = 0;
  for (const std::string& text : texts) {
    count += tokenizer.encode(text).size();
  }
  return count;
}

template <typename ErrorType, typename Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "";
}

TEST(TokenizerTrainerTest, MakesTheReferencesLayout) {
  const auto trained = train_tokenizer(corpus().texts, {.vocab_size = 400});
  const Tokenizer& tokenizer = trained.tokenizer;
  EXPECT_EQ(tokenizer.vocab_size(), 400);
  EXPECT_EQ(tokenizer.piece(kPadId), "<pad>");
  EXPECT_EQ(tokenizer.piece(kEosId), "</s>");
  EXPECT_EQ(tokenizer.piece(kBosId), "<s>");
  EXPECT_EQ(tokenizer.piece(kUnkId), "<unk>");
  EXPECT_EQ(tokenizer.piece(kToolCallId), kToolCallPiece);
  EXPECT_EQ(tokenizer.piece(kToolsId), kToolsPiece);
  EXPECT_EQ(tokenizer.piece(6), "<0x00>");
  EXPECT_EQ(tokenizer.piece_type(6 + 255), PieceType::kByte);
  EXPECT_EQ(tokenizer.piece_type(6 + 256), PieceType::kNormal);
  const std::string text = "unseen \xF0\x9F\x8E\x89 and \xE6\x9D\xB1\n <tools>";
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

TEST(TokenizerTrainerTest, IsDeterministicWhateverTheThreads) {
  const auto texts = corpus().texts;
  const auto one = train_tokenizer(texts, {.vocab_size = 400, .num_threads = 1});
  const auto four = train_tokenizer(texts, {.vocab_size = 400, .num_threads = 4});
  EXPECT_EQ(one.tokenizer.fingerprint(), four.tokenizer.fingerprint());
  const auto other = train_tokenizer(texts, {.vocab_size = 401});
  EXPECT_NE(one.tokenizer.fingerprint(), other.tokenizer.fingerprint());
}

TEST(TokenizerTrainerTest, DefaultJsonSymbolsShortenPromptsAndAnswers) {
  const Corpus text = corpus();
  const auto plain = train_tokenizer(text.texts, {.vocab_size = 600}).tokenizer;
  const auto symbols =
      train_tokenizer(text.texts, {.vocab_size = 600, .json_symbols = {"default"}}).tokenizer;
  EXPECT_LT(count_tokens(symbols, text.tools) * 10, count_tokens(plain, text.tools) * 7);
  EXPECT_LT(count_tokens(symbols, text.answers) * 10, count_tokens(plain, text.answers) * 9);
  for (const std::string& tools : text.tools) {
    EXPECT_EQ(symbols.decode(symbols.encode(tools)), tools);
  }
}

TEST(TokenizerTrainerTest, EachSymbolIsOneToken) {
  const auto tokenizer =
      train_tokenizer(corpus().texts, {.vocab_size = 500, .json_symbols = {"default", "@@x@@"}})
          .tokenizer;
  const auto symbols = default_json_symbols();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    const auto id = static_cast<TokenId>(6 + i);
    EXPECT_EQ(tokenizer.piece(id), symbols[i]);
    EXPECT_EQ(tokenizer.piece_type(id), PieceType::kUserDefined);
    constexpr std::string_view kSpace = "\xE2\x96\x81";
    if (symbols[i].starts_with(kSpace)) {  // stands at the start of a text
      EXPECT_EQ(tokenizer.encode(symbols[i].substr(kSpace.size())), std::vector<TokenId>{id});
    } else {
      const auto ids = tokenizer.encode("a" + std::string(symbols[i]) + "b");
      EXPECT_EQ(std::count(ids.begin(), ids.end(), id), 1) << symbols[i];
    }
  }
  const auto id = static_cast<TokenId>(6 + symbols.size());
  EXPECT_EQ(tokenizer.piece(id), "@@x@@");
}

TEST(TokenizerTrainerTest, ATooLargeVocabularyNamesOneThatWorks) {
  const std::vector<std::string> texts = {"one two three", "four five six"};
  const std::string message =
      error_of<ConfigError>([&] { train_tokenizer(texts, {.vocab_size = 8192}); });
  const std::string before = "set it to ";
  const std::size_t at = message.find(before);
  ASSERT_NE(at, std::string::npos) << message;
  const std::int64_t suggested = std::stoll(message.substr(at + before.size()));
  EXPECT_EQ(train_tokenizer(texts, {.vocab_size = suggested}).tokenizer.vocab_size(), suggested);
}

TEST(TokenizerTrainerTest, ASoftLimitTakesWhatTheTextFills) {
  const std::vector<std::string> texts = {"a short text", "of a few words"};
  const Tokenizer tokenizer =
      train_tokenizer(texts, {.vocab_size = 8192, .hard_vocab_limit = false}).tokenizer;
  EXPECT_GT(tokenizer.vocab_size(), 262);
  EXPECT_LT(tokenizer.vocab_size(), 400);
}

TEST(TokenizerTrainerTest, ATooSmallVocabularyIsExplained) {
  const std::vector<std::string> texts = {"abcdefghijklmnopqrstuvwxyz"};
  const std::string message =
      error_of<ConfigError>([&] { train_tokenizer(texts, {.vocab_size = 270}); });
  EXPECT_NE(message.find("pieces are needed at least"), std::string::npos) << message;
}

TEST(TokenizerTrainerTest, CountsLinesAndLeavesOutLongOnes) {
  const std::vector<std::string> texts = {"  one two\r\n\n three four  ", "", " \n",
                                          std::string(100, 'x'), "five"};
  const auto trained = train_tokenizer(texts, {.vocab_size = 280, .max_line_bytes = 50});
  EXPECT_EQ(trained.lines, 3);
  EXPECT_EQ(trained.long_lines, 1);
}

TEST(TokenizerTrainerTest, NoTextIsAnError) {
  EXPECT_THROW(train_tokenizer(std::vector<std::string>{}), DataError);
  const std::string message = error_of<DataError>([] {
    train_tokenizer(std::vector<std::string>{std::string(5000, 'x'), "  "});
  });
  EXPECT_NE(message.find("1 lines over 4192 bytes"), std::string::npos) << message;
}

TEST(TokenizerTrainerTest, PassesOnWhatTheSourceThrows) {
  for (const int failing_call : {1, 3}) {
    int calls = 0;
    const TextSource source = [&](std::string& text) -> bool {
      if (++calls == failing_call) {
        throw std::runtime_error("disk on fire");
      }
      text = "some words";
      return true;
    };
    EXPECT_EQ(error_of<std::runtime_error>([&] { train_tokenizer(source, {.vocab_size = 280}); }),
              "disk on fire");
  }
}

TEST(TokenizerTrainerTest, WritesNoFile) {
  const test::TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  train_tokenizer(corpus().texts, {.vocab_size = 400});
  const bool empty = std::filesystem::is_empty(folder.path());
  std::filesystem::current_path(before);
  EXPECT_TRUE(empty);
}

TEST(TokenizerTrainerTest, BrokenUtf8AndReservedTextAreHarmless) {
  const std::vector<std::string> texts = {"a\xFF\xC3 b",
                                          "<tools> <tool_call> <s> \xE2\x96\x81\xE2\x96\x85",
                                          "words here", std::string("z\0z", 3)};
  const auto trained = train_tokenizer(texts, {.vocab_size = 280});
  EXPECT_EQ(trained.tokenizer.decode(trained.tokenizer.encode("words")), "words");
}

TEST(TokenizerTrainerTest, ConfigIsChecked) {
  const auto message = [](const TokenizerTrainerConfig& config) {
    return error_of<ConfigError>([&] { config.validate("tokenizer"); });
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.json_symbols = {"default"}}), "");
  EXPECT_NE(message({.vocab_size = 262}).find("vocab_size = 262"), std::string::npos);
  EXPECT_NE(message({.vocab_size = 290, .json_symbols = {"default"}}).find("vocab_size"),
            std::string::npos);
  EXPECT_NE(message({.json_symbols = {"a b"}}).find("without spaces"), std::string::npos);
  EXPECT_NE(message({.json_symbols = {""}}).find("without spaces"), std::string::npos);
  for (const char* taken : {"<tools>", "<s>", "<0x0A>"}) {
    EXPECT_NE(message({.json_symbols = {taken}}).find("listed twice"), std::string::npos) << taken;
  }
  EXPECT_NE(message({.character_coverage = 0.5}).find("character_coverage"), std::string::npos);
  EXPECT_NE(message({.max_line_bytes = 0}).find("max_line_bytes"), std::string::npos);
  EXPECT_NE(message({.num_threads = -1}).find("num_threads"), std::string::npos);
  const auto config =
      from_json<TokenizerTrainerConfig>(Json{{"json_symbols", {"default", "x"}}}, "test");
  EXPECT_EQ(config.json_symbols, (std::vector<std::string>{"default", "x"}));
}

}  // namespace
}  // namespace needle
