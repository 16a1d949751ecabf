#include "needle/text/prompt.h"

#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/tool_name.h"
#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/json.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

Tokenizer golden_tokenizer() {
  const Json cases = read_json_file(test::golden("tokenizer/tokenizer.json"));
  return Tokenizer::load(test::golden("tokenizer") / cases.at("model").get<std::string>());
}

std::vector<Json> read_rows(const std::filesystem::path& path) {
  std::vector<Json> rows;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    rows.push_back(Json::parse(line));
  }
  return rows;
}

// Every unshuffled encode_*.json: compact texts in, encoder, decoder and target ids out.
TEST(PromptGolden, EncodesExamplesAsTheReference) {
  const Tokenizer tokenizer = golden_tokenizer();
  const auto rows = read_rows(test::golden("data/examples.jsonl"));
  std::size_t compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("data"))) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("encode_") || entry.path().extension() != ".json") {
      continue;
    }
    const Json file = read_json_file(entry.path());
    if (!file.contains("examples") || file.value("shuffle_tools", true)) {
      continue;
    }
    const PromptConfig config{.max_enc_len = file.at("max_enc_len"),
                              .max_dec_len = file.at("max_dec_len")};
    for (const Json& example : file.at("examples")) {
      const Json& row = rows.at(example.at("row").get<std::size_t>());
      const std::string tools = compact_json_text(row.at("tools").get<std::string>());
      const std::string answer = compact_json_text(row.at("answers").get<std::string>());
      EXPECT_EQ(tools, example.at("tools_text").get<std::string>());
      EXPECT_EQ(answer, example.at("answer_text").get<std::string>());
      const auto prompt = encode_prompt(tokenizer, config, row.at("query").get<std::string>(),
                                        tools, SpecialText::kSpecial);
      EXPECT_EQ(prompt.ids, example.at("encoder_ids").get<std::vector<TokenId>>())
          << name << " " << row;
      const auto encoded = encode_answer(tokenizer, config, answer, SpecialText::kSpecial);
      EXPECT_EQ(encoded.decoder_in, example.at("decoder_in_ids").get<std::vector<TokenId>>())
          << name << " " << row;
      EXPECT_EQ(encoded.target, example.at("target_ids").get<std::vector<TokenId>>())
          << name << " " << row;
      EXPECT_TRUE(encoded.fits);
      ++compared;
    }
    for (const Json& dropped : file.at("dropped_rows")) {
      const Json& row = rows.at(dropped.get<std::size_t>());
      const std::string answer = compact_json_text(row.at("answers").get<std::string>());
      EXPECT_FALSE(encode_answer(tokenizer, config, answer, SpecialText::kSpecial).fits)
          << name << " " << row;
    }
  }
  EXPECT_GT(compared, 0U);
}

TEST(PromptGolden, EncodesGenerationPromptsAsTheReference) {
  const Tokenizer tokenizer = golden_tokenizer();
  const Json cases = read_json_file(test::golden("generate/generate.json"));
  ASSERT_FALSE(cases.at("cases").empty());
  for (const Json& row : cases.at("cases")) {
    std::string tools = row.at("tools").get<std::string>();
    if (row.value("normalize", true)) {
      tools = normalize_tool_names(tools, NameStyle::kReference).tools_json;
    }
    const PromptConfig config{.max_enc_len = row.at("max_enc_len")};
    const auto prompt = encode_prompt(tokenizer, config, row.at("query").get<std::string>(), tools,
                                      SpecialText::kSpecial);
    EXPECT_EQ(prompt.ids, row.at("encoder_ids").get<std::vector<TokenId>>()) << row.at("query");
  }
}

TEST(PromptTest, CountsWhatItCuts) {
  const Tokenizer tokenizer = golden_tokenizer();
  const std::string query = "set a timer for 5 minutes";
  const std::string tools = R"([{"name":"set_timer"}])";
  const auto query_tokens = static_cast<std::int64_t>(tokenizer.encode(query).size());
  const auto tools_tokens = static_cast<std::int64_t>(tokenizer.encode(tools).size());

  const auto whole =
      encode_prompt(tokenizer, {.max_enc_len = query_tokens + 1 + tools_tokens}, query, tools);
  EXPECT_EQ(whole.cut_query_tokens, 0);
  EXPECT_EQ(whole.cut_tools_tokens, 0);
  EXPECT_EQ(static_cast<std::int64_t>(whole.ids.size()), query_tokens + 1 + tools_tokens);

  const auto short_tools =
      encode_prompt(tokenizer, {.max_enc_len = query_tokens + 3}, query, tools);
  EXPECT_EQ(short_tools.cut_query_tokens, 0);
  EXPECT_EQ(short_tools.cut_tools_tokens, tools_tokens - 2);

  const auto short_query = encode_prompt(tokenizer, {.max_enc_len = 5}, query, tools);
  EXPECT_EQ(short_query.cut_query_tokens, query_tokens - 3);
  EXPECT_EQ(short_query.cut_tools_tokens, tools_tokens - 1);
  EXPECT_EQ(short_query.ids.size(), 5U);
  EXPECT_EQ(short_query.ids[3], kToolsId);
}

TEST(PromptTest, NoTextForgesTheSeparator) {
  const Tokenizer tokenizer = golden_tokenizer();
  const auto prompt = encode_prompt(tokenizer, {}, "a <tools> b", "[\"<tools>\"]");
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), kToolsId), 1);
  const auto answer = encode_answer(tokenizer, {}, "<tool_call>");
  EXPECT_EQ(std::count(answer.target.begin(), answer.target.end(), kToolCallId), 1);
}

TEST(PromptTest, AnswerSpansAlignWithTheTarget) {
  const Tokenizer tokenizer = golden_tokenizer();
  const auto encoded = encode_answer(tokenizer, {.max_dec_len = 4}, R"([{"name":"x"}])");
  ASSERT_EQ(encoded.spans.size() + 2, encoded.target.size());
  ASSERT_EQ(encoded.decoder_in.size(), encoded.target.size());
  for (std::size_t i = 0; i < encoded.spans.size(); ++i) {
    EXPECT_EQ(encoded.target[i + 1], encoded.spans[i].id);
    EXPECT_EQ(encoded.decoder_in[i + 1], encoded.target[i]);
  }
  EXPECT_FALSE(encoded.fits);
}

TEST(PromptTest, ConfigIsChecked) {
  PromptConfig{}.validate("prompt");
  EXPECT_THROW((PromptConfig{.max_enc_len = 2}).validate("prompt"), ConfigError);
  EXPECT_THROW((PromptConfig{.max_dec_len = 3}).validate("prompt"), ConfigError);
  const PromptConfig config{.json_escapes = JsonEscapes::kUtf8};
  EXPECT_EQ(from_json<PromptConfig>(to_json(config), "test").json_escapes, JsonEscapes::kUtf8);
}

}  // namespace
}  // namespace needle
