#include "needle/decode/generate.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/random.h"
#include "needle/decode/name_constraint.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Tokenizer& tiny_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

// What a trained model would write: the marker, then the answer.
std::vector<TokenId> answer_ids(const std::string& answer) {
  std::vector<TokenId> ids = {kToolCallId};
  for (const TokenId id : tiny_tokenizer().encode(answer)) {
    ids.push_back(id);
  }
  return ids;
}

TokenId byte_id(unsigned byte) {
  for (TokenId id = 0; id < tiny_tokenizer().vocab_size(); ++id) {
    if (tiny_tokenizer().piece_type(id) == PieceType::kByte &&
        tiny_tokenizer().piece(id) == format("<0x{:02X}>", byte)) {
      return id;
    }
  }
  throw Error("no such byte piece");
}

test::ScriptedEngine engine_that_says(std::vector<TokenId> ids) {
  return {tiny_tokenizer().vocab_size(), [ids](auto) { return ids; }};
}

constexpr std::string_view kTools =
    R"([{"name":"setTimer","parameters":{"minutes":{"type":"integer"}}}])";

// Everything around the network: the reference's tokens are replayed, prompt and text are ours.
TEST(GenerateGoldenTest, PromptAndTextAreTheReferences) {
  const Json golden = read_json_file(test::golden("generate/generate.json"));
  ASSERT_FALSE(golden.at("cases").empty());
  std::int64_t index = 0;
  for (const Json& expected : golden.at("cases")) {
    SCOPED_TRACE(format("case {}", index++));
    const auto ids = expected.at("generated_ids").get<std::vector<TokenId>>();
    const auto engine = engine_that_says(ids);
    const FunctionCaller caller(engine, tiny_tokenizer(),
                                {.max_enc_len = expected.at("max_enc_len").get<std::int64_t>()},
                                NameStyle::kReference);
    std::string streamed;
    const CallRequest request = {
        .query = expected.at("query").get<std::string>(),
        .tools_json = expected.at("tools").get<std::string>(),
        .max_gen_len = expected.at("max_gen_len").get<std::int64_t>(),
        .constrain = expected.at("constrained").get<bool>() ? Constrain::kNames : Constrain::kNone,
        .normalize_names = expected.at("normalize").get<bool>(),
        .on_text = [&](std::string_view text) {
          streamed += text;
          return true;
        }};
    const CallResult result = caller.call(request);
    EXPECT_EQ(result.prompt_ids, expected.at("encoder_ids").get<std::vector<TokenId>>());
    EXPECT_EQ(result.ids, ids);
    EXPECT_EQ(tiny_tokenizer().decode(result.ids), expected.at("raw_text").get<std::string>());
    EXPECT_EQ(result.text, expected.at("text").get<std::string>());
    EXPECT_EQ(streamed, result.raw_text);
    EXPECT_EQ(result.stop == StopReason::kEos, expected.at("ended_by_eos").get<bool>());

    if (request.constrain == Constrain::kNames) {
      const std::string tools =
          request.normalize_names
              ? normalize_tool_names(request.tools_json, NameStyle::kReference).tools_json
              : request.tools_json;
      NameConstraint constraint(std::make_shared<TokenTexts>(tiny_tokenizer()), tools,
                                DeclaredKeys::kReference);
      for (const TokenId id : ids) {
        constraint.allowed(request.max_gen_len);
        constraint.accept(id);
      }
      EXPECT_EQ(constraint.masked_steps(),
                expected.at("constrained_steps_with_a_mask").get<std::int64_t>());
    }
  }
}

TEST(FunctionCallerTest, RestoresToolNamesAndKeepsTheRawText) {
  const auto engine =
      engine_that_says(answer_ids(R"([{"name":"set_timer","arguments":{"minutes":5}}])"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const CallResult result = caller.call({.query = "5 minutes", .tools_json = std::string(kTools)});
  EXPECT_EQ(result.text, R"([{"name":"setTimer","arguments":{"minutes":5}}])");
  EXPECT_EQ(result.raw_text, R"( [{"name":"set_timer","arguments":{"minutes":5}}])");
  EXPECT_EQ(result.stop, StopReason::kEos);
  EXPECT_EQ(result.ids.front(), kToolCallId);
  EXPECT_THAT(tiny_tokenizer().decode(result.prompt_ids), HasSubstr("set_timer"));
}

TEST(FunctionCallerTest, TheGrammarIsTheDefaultAndAnswersAreValidWhateverTheModelSays) {
  const auto engine = engine_that_says(answer_ids("hello"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  EXPECT_EQ(caller.call({.query = "hi", .tools_json = "[]"}).text, "[]");
  EXPECT_EQ(caller.call({.query = "hi"}).text, "[]");
  const CallResult named =
      caller.call({.query = "5 minutes",
                   .tools_json = std::string(kTools),
                   .calls = {.min_calls = 1, .max_calls = 1, .tool = "setTimer"}});
  EXPECT_THAT(named.text, ::testing::StartsWith(R"([{"name":"setTimer","arguments":{)"));
  EXPECT_EQ(named.stop, StopReason::kEos);
  EXPECT_GT(named.forced_tokens, 0);
  EXPECT_THROW(caller.call({.query = "hi", .tools_json = "not json"}), DataError);
}

TEST(FunctionCallerTest, AskingForWhatCannotBeIsAnError) {
  const auto engine = engine_that_says(answer_ids("hello"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const std::string tools(kTools);
  EXPECT_THROW(caller.call({.query = "q", .tools_json = tools, .max_gen_len = 2}), ConfigError);
  EXPECT_THROW(caller.call({.query = "q", .tools_json = tools, .calls = {.tool = "absent"}}),
               Error);
  EXPECT_THROW(caller.call({.query = "q",
                            .tools_json = tools,
                            .constrain = Constrain::kNames,
                            .calls = {.min_calls = 1}}),
               ConfigError);
  const std::string hard =
      R"([{"name":"f","parameters":{"a":{"type":"string","not":{"const":"x"},"required":true}}}])";
  EXPECT_EQ(caller.call({.query = "q", .tools_json = hard}).unenforced.size(), 1);
  EXPECT_THROW(caller.call({.query = "q", .tools_json = hard, .strict = true}), DataError);
}

TEST(FunctionCallerTest, AnswersWithAValueOfAResponseSchema) {
  const auto engine = engine_that_says(answer_ids("hello"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const CallResult result = caller.call(
      {.query = "q",
       .response_schema = R"({"type":"object","properties":{"n":{"const":7}},"required":["n"]})"});
  EXPECT_EQ(result.text, R"({"n":7})");
}

TEST(FunctionCallerTest, WithoutToolsTheTextStaysAsGenerated) {
  const auto engine = engine_that_says(answer_ids("hello"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  for (const std::string tools : {"", "[]", "not json"}) {
    const CallRequest free{.query = "hi", .tools_json = tools, .constrain = Constrain::kNone};
    EXPECT_EQ(caller.call(free).text, " hello") << tools;
  }
}

TEST(FunctionCallerTest, TheNameConstraintKeepsTheModelToDeclaredNames) {
  const auto engine = engine_that_says(answer_ids(R"([{"name":"zzzzzzzzz","arguments":{}}])"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  CallRequest request = {.query = "q", .tools_json = std::string(kTools), .max_gen_len = 200};
  EXPECT_THAT(caller.call(request).raw_text, HasSubstr(R"("name":"set_timer")"));
  request.constrain = Constrain::kNone;
  EXPECT_THAT(caller.call(request).raw_text, HasSubstr(R"("name":"zzzzzzzzz")"));
}

TEST(FunctionCallerTest, WrappedToolsPromptAsPlainOnes) {
  const auto engine = engine_that_says({});
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const auto prompt = [&](std::string tools) {
    return caller.call({.query = "q", .tools_json = std::move(tools)}).prompt_ids;
  };
  const auto plain = prompt(R"([{"name":"a","description":"d","parameters":{}}])");
  EXPECT_EQ(prompt(R"([{"type":"function",
                        "function":{"name":"a","description":"d","parameters":{}}}])"),
            plain);
  EXPECT_NE(prompt(R"([{"name":"b","description":"d","parameters":{}}])"), plain);
}

// Tools are kept by their text: a request must not get those of another, however alike.
TEST(FunctionCallerTest, ToolsThatWereSeenBeforeAreReadTheSameWay) {
  const auto engine = engine_that_says(answer_ids("[]"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  const auto prompt = [&](std::string query, std::string tools, bool normalize) {
    return caller
        .call({.query = std::move(query),
               .tools_json = std::move(tools),
               .constrain = Constrain::kNone,
               .normalize_names = normalize})
        .prompt_ids;
  };
  const std::string tools(kTools);
  const auto whole = [&](const std::string& query, const std::string& text) {
    return encode_prompt(tiny_tokenizer(), {}, query, text).ids;
  };
  const std::string normal = normalize_tool_names(tools).tools_json;
  ASSERT_NE(normal, tools);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(prompt("a", tools, true), whole("a", normal));
    EXPECT_EQ(prompt("b c", tools, true), whole("b c", normal));
    EXPECT_EQ(prompt("a", tools, false), whole("a", tools));
    EXPECT_EQ(prompt("a", "[]", true), whole("a", "[]"));
    EXPECT_EQ(prompt("a", "", false), whole("a", ""));
  }
}

TEST(FunctionCallerTest, APromptsOverflowIsWhatACallWouldCut) {
  const auto engine = engine_that_says(answer_ids("[]"));
  const std::string tools(kTools);
  const auto all = std::ssize(encode_prompt(tiny_tokenizer(), {}, "five minutes please",
                                            normalize_tool_names(tools).tools_json)
                                  .ids);
  for (const std::int64_t room : {all + 1, all, all - 1, std::int64_t{8}, std::int64_t{3}}) {
    const FunctionCaller caller(engine, tiny_tokenizer(), {.max_enc_len = room});
    const CallRequest request = {
        .query = "five minutes please", .tools_json = tools, .constrain = Constrain::kNone};
    const CallResult result = caller.call(request);
    EXPECT_EQ(caller.prompt_overflow(request), result.cut_query_tokens + result.cut_tools_tokens);
    EXPECT_EQ(caller.prompt_overflow(request), std::max<std::int64_t>(0, all - room)) << room;
    EXPECT_EQ(std::ssize(result.prompt_ids), std::min(all, room));
  }
}

TEST(FunctionCallerTest, TheDecoderLimitOfTheModelBoundsTheLength) {
  const auto engine = engine_that_says(std::vector<TokenId>(50, 9));
  const FunctionCaller caller(engine, tiny_tokenizer(), {.max_dec_len = 6});
  const CallResult result = caller.call({.query = "q", .constrain = Constrain::kNone});
  EXPECT_EQ(result.ids.size(), 5U);
  EXPECT_EQ(result.stop, StopReason::kMaxTokens);
}

TEST(FunctionCallerTest, ModelAndTokenizerMustFit) {
  const test::ScriptedEngine engine(tiny_tokenizer().vocab_size() + 1,
                                    [](auto) { return std::vector<TokenId>(); });
  EXPECT_THROW(FunctionCaller(engine, tiny_tokenizer(), {}), Error);
}

struct Streamed {
  std::vector<std::string> pieces;
  CallResult result;
  std::string all() const {
    std::string text;
    for (const std::string& piece : pieces) {
      text += piece;
    }
    return text;
  }
};

Streamed stream(const std::vector<TokenId>& ids, std::size_t cancel_after = 1000) {
  const auto engine = engine_that_says(ids);
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  Streamed streamed;
  streamed.result = caller.call({.query = "q",
                                 .tools_json = std::string(kTools),
                                 .constrain = Constrain::kNone,
                                 .on_text = [&](std::string_view text) {
                                   streamed.pieces.emplace_back(text);
                                   return streamed.pieces.size() < cancel_after;
                                 }});
  return streamed;
}

TEST(StreamingTest, PiecesAreValidUtf8AndMakeUpTheRawText) {
  const Streamed streamed =
      stream(answer_ids("[{\"name\":\"set_timer\",\"x\":\"caf\u00e9 \U0001F389\u20AC\"}]"));
  EXPECT_GT(streamed.pieces.size(), 3U);
  for (const std::string& piece : streamed.pieces) {
    EXPECT_TRUE(is_valid_utf8(piece)) << piece;
    EXPECT_THAT(piece, ::testing::Not(HasSubstr("\uFFFD")));
    EXPECT_FALSE(piece.empty());
  }
  EXPECT_EQ(streamed.all(), streamed.result.raw_text);
  EXPECT_THAT(streamed.result.text, HasSubstr("setTimer"));
  EXPECT_THAT(streamed.all(), HasSubstr("set_timer"));
  EXPECT_THAT(streamed.all(), HasSubstr("\U0001F389\u20AC"));
}

TEST(StreamingTest, BrokenBytesBecomeReplacementCharacters) {
  const TokenId letter = tiny_tokenizer().encode("a").back();
  const std::vector<std::vector<unsigned>> broken = {
      {0xF0, 0x9F, 0x8E},        // a character that never ends
      {0x80, 0x80},              // continuation bytes alone
      {0xED, 0xA0, 0x80},        // a surrogate
      {0xC3, 0xC3, 0xA9},        // the second one is complete
      {0xF4, 0x90, 0x80, 0x80},  // above U+10FFFF
      {0xE2, 0x82, 0xAC, 0xFF},  // a whole character, then nonsense
  };
  for (const auto& bytes : broken) {
    for (const bool ends : {false, true}) {
      std::vector<TokenId> ids = {kToolCallId, letter};
      for (const unsigned byte : bytes) {
        ids.push_back(byte_id(byte));
      }
      if (!ends) {
        ids.push_back(letter);
      }
      const Streamed streamed = stream(ids);
      EXPECT_TRUE(is_valid_utf8(streamed.result.text));
      EXPECT_THAT(streamed.result.raw_text, HasSubstr("\uFFFD"));
      EXPECT_EQ(streamed.all(), streamed.result.raw_text);
      for (const std::string& piece : streamed.pieces) {
        EXPECT_TRUE(is_valid_utf8(piece));
      }
    }
  }
}

TEST(StreamingTest, TheMarkerNeverShows) {
  EXPECT_THAT(stream(answer_ids("x")).all(), ::testing::Not(HasSubstr("tool_call")));
  // Spelled in ordinary pieces it is stripped too, and a text that only begins like it is not lost.
  const Streamed spelled = stream(tiny_tokenizer().encode("<tool_call>x"));
  EXPECT_EQ(spelled.all(), "x");
  EXPECT_EQ(spelled.result.raw_text, "x");
  EXPECT_EQ(stream(tiny_tokenizer().encode("<tool")).all(), "<tool");
}

TEST(StreamingTest, AnyTokensAreValidTextAndStreamToTheSame) {
  Random random(5);
  const auto vocab_size = static_cast<std::uint32_t>(tiny_tokenizer().vocab_size());
  const auto bytes_begin = static_cast<std::uint32_t>(byte_id(0x00));
  for (int round = 0; round < 300; ++round) {
    std::vector<TokenId> ids;
    for (std::uint32_t length = random.below(40); length > 0; --length) {
      // Half of them bytes from 0x80 on: beginnings and continuations of characters.
      const std::uint32_t id =
          random.below(2) == 0 ? random.below(vocab_size) : bytes_begin + 0x80 + random.below(0x80);
      ids.push_back(static_cast<TokenId>(id) == kEosId ? kToolsId : static_cast<TokenId>(id));
    }
    const Streamed streamed = stream(ids);
    EXPECT_EQ(streamed.result.ids, ids);
    EXPECT_EQ(streamed.all(), streamed.result.raw_text);
    EXPECT_TRUE(is_valid_utf8(streamed.result.text));
    for (const std::string& piece : streamed.pieces) {
      EXPECT_TRUE(is_valid_utf8(piece));
    }
  }
}

TEST(StreamingTest, CancelStopsTheLoop) {
  const Streamed streamed = stream(answer_ids(R"([{"name":"set_timer","arguments":{}}])"), 2);
  EXPECT_EQ(streamed.pieces.size(), 2U);
  EXPECT_EQ(streamed.result.stop, StopReason::kCancelled);
  EXPECT_TRUE(streamed.result.raw_text.starts_with(streamed.all()));
}

TEST(FunctionCallerTest, ACancelledRequestStopsAtTheNextToken) {
  const auto engine = engine_that_says(answer_ids(R"([{"name":"set_timer","arguments":{}}])"));
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  int asked = 0;
  const CallResult result = caller.call({.query = "q",
                                         .tools_json = std::string(kTools),
                                         .constrain = Constrain::kNone,
                                         .cancelled = [&] { return ++asked == 3; }});
  EXPECT_EQ(result.stop, StopReason::kCancelled);
  EXPECT_EQ(result.ids.size(), 2U);  // it was asked before the prompt was read, too
  EXPECT_EQ(asked, 3);
}

TEST(CallBatchTest, GivesTheSameAsOneByOne) {
  // Answers with the first tokens of its prompt, so every request has its own result.
  const test::ScriptedEngine engine(tiny_tokenizer().vocab_size(), [](auto prompt) {
    return std::vector<TokenId>(prompt.begin(), prompt.end());
  });
  const FunctionCaller caller(engine, tiny_tokenizer(), {});
  std::vector<CallRequest> requests;
  for (int i = 0; i < 20; ++i) {
    requests.push_back({.query = format("query {}", i), .constrain = Constrain::kNone});
  }
  const auto results = caller.call_batch(requests);
  ASSERT_EQ(results.size(), requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(results[i].text, caller.call(requests[i]).text);
    EXPECT_THAT(results[i].text, HasSubstr(requests[i].query));
  }
  EXPECT_TRUE(caller.call_batch({}).empty());
  // One that cannot be answered is told of before any prompt is read.
  int begun = 0;
  requests[0].cancelled = [&] { return ++begun < 0; };
  requests[7].constrain = Constrain::kGrammar;
  requests[7].calls.tool = "no such tool";
  EXPECT_THROW(caller.call_batch(requests), Error);
  EXPECT_EQ(begun, 0);
}

}  // namespace
}  // namespace needle
