#include "needle/model/model_engine.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "needle/calls/tool_name.h"
#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/decode/name_constraint.h"
#include "needle/decode/retrieve.h"
#include "needle/eval/retrieval_metrics.h"
#include "needle/model/checkpoint.h"
#include "needle/model/eval_scope.h"
#include "needle/model/released_checkpoint.h"
#include "needle/text/tokenizer.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

const Tokenizer& golden_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  return tokenizer;
}

// "trained.pkl" or "trained.pkl, int4 kernels".
Needle named_model(const std::string& description) {
  const auto comma = description.find(',');
  auto model = load_released_checkpoint(test::golden("checkpoint/" + description.substr(0, comma)));
  if (comma != std::string::npos) {
    const bool int4 = description.find("int4", comma) != std::string::npos;
    model->set_fake_quant(int4 ? FakeQuant::kInt4 : FakeQuant::kInt8);
  }
  return model;
}

std::vector<TokenId> to_ids(const Json& json) { return json.get<std::vector<TokenId>>(); }

Constrain constrain_of(const Json& json) {
  return json.at("constrained").get<bool>() ? Constrain::kNames : Constrain::kNone;
}

std::vector<TokenId> some_ids(const ModelConfig& config, std::int64_t length) {
  const auto tokens = test::random_tokens(config, 1, length);
  return {tokens.data_ptr<std::int64_t>(), tokens.data_ptr<std::int64_t>() + length};
}

TEST(GenerateGolden, EveryGreedyAnswerTokenForToken) {
  const Json golden = read_json_file(test::golden("generate/generate.json"));
  std::map<std::string, std::unique_ptr<ModelEngine>> engines;
  for (const Json& expected : golden.at("cases")) {
    const auto name = expected.at("model").get<std::string>();
    auto& engine = engines[name];
    if (!engine) {
      engine = std::make_unique<ModelEngine>(named_model(name));
    }
    PromptConfig prompt;
    prompt.max_enc_len = expected.at("max_enc_len").get<std::int64_t>();
    const FunctionCaller caller(*engine, golden_tokenizer(), prompt, NameStyle::kReference);
    CallRequest request;
    request.query = expected.at("query").get<std::string>();
    request.tools_json = expected.at("tools").get<std::string>();
    request.max_gen_len = expected.at("max_gen_len").get<std::int64_t>();
    request.constrain = constrain_of(expected);
    request.normalize_names = expected.at("normalize").get<bool>();
    const CallResult result = caller.call(request);
    SCOPED_TRACE(name + ": " + request.query);
    EXPECT_EQ(result.prompt_ids, to_ids(expected.at("encoder_ids")));
    EXPECT_EQ(result.ids, to_ids(expected.at("generated_ids")));
    EXPECT_EQ(golden_tokenizer().decode(result.ids), expected.at("raw_text").get<std::string>());
    EXPECT_EQ(result.text, expected.at("text").get<std::string>());
    EXPECT_EQ(result.stop == StopReason::kEos, expected.at("ended_by_eos").get<bool>());
  }
}

TEST(GenerateGolden, BatchesGiveTheSameAnswers) {
  const Json golden = read_json_file(test::golden("generate/batch.json"));
  auto model = named_model(golden.at("model").get<std::string>());
  const auto queries = golden.at("queries").get<std::vector<std::string>>();
  const auto tools = golden.at("tools").get<std::vector<std::string>>();
  const auto texts = std::make_shared<TokenTexts>(golden_tokenizer());
  const bool constrained = golden.at("constrained").get<bool>();
  std::vector<NormalizedTools> normalized;
  std::vector<std::vector<TokenId>> prompts;
  std::vector<std::unique_ptr<NameConstraint>> constraints;
  BatchGenerateOptions options;
  options.max_gen_len = golden.at("max_gen_len").get<std::int64_t>();
  options.batch_rows = 4;
  for (std::size_t i = 0; i < queries.size(); ++i) {
    normalized.push_back(normalize_tool_names(tools[i], NameStyle::kReference));
    const std::string compact = compact_json_text(normalized[i].tools_json);
    prompts.push_back(
        encode_prompt(golden_tokenizer(), {}, queries[i], compact, SpecialText::kSpecial).ids);
    if (constrained) {
      constraints.push_back(std::make_unique<NameConstraint>(texts, normalized[i].tools_json,
                                                             DeclaredKeys::kReference));
      options.constraints.push_back(constraints.back().get());
    }
  }
  const auto generated = generate_batch(model, prompts, options);
  const auto expected = golden.at("texts").get<std::vector<std::string>>();
  for (std::size_t i = 0; i < queries.size(); ++i) {
    std::string text = golden_tokenizer().decode(generated[i].ids);
    if (text.starts_with(kToolCallPiece)) {
      text.erase(0, kToolCallPiece.size());
    }
    EXPECT_EQ(restore_tool_names(text, normalized[i]), expected[i]) << queries[i];
  }
}

TEST(RetrievalGolden, EmbeddingsAndRankings) {
  const Json golden = read_json_file(test::golden("retrieval/retrieval.json"));
  const auto file = load_tensors(test::golden("retrieval/embeddings.safetensors"));
  const ModelEngine engine(named_model(golden.at("model").get<std::string>()));
  const RetrieveOptions options{.max_tokens = golden.at("max_len").get<std::int64_t>(),
                                .special = SpecialText::kSpecial};
  const auto expect_embeddings = [&](const std::vector<std::string>& texts,
                                     const std::string& name) {
    const auto& expected = file.at(name);
    ASSERT_EQ(static_cast<std::int64_t>(texts.size()), expected.size(0));
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto embedding = embed_text(engine, golden_tokenizer(), texts[i], options);
      EXPECT_LE(test::largest_difference(torch::tensor(embedding),
                                         expected[static_cast<std::int64_t>(i)]),
                2e-5)
          << name << ' ' << texts[i];
    }
  };
  const auto tools = golden.at("tools").get<std::vector<std::string>>();
  std::vector<std::string> queries;
  const ToolIndex index(engine, golden_tokenizer(), tools, options);
  for (const Json& entry : golden.at("queries")) {
    queries.push_back(entry.at("query").get<std::string>());
    const auto ranking = index.rank(queries.back(), tools.size());
    const Json& expected = entry.at("ranked");
    ASSERT_EQ(ranking.size(), expected.size());
    std::map<std::size_t, double> score_of;
    for (const Json& pair : expected) {
      score_of[pair.at(0).get<std::size_t>()] = pair.at(1).get<double>();
    }
    for (std::size_t place = 0; place < ranking.size(); ++place) {
      EXPECT_NEAR(ranking[place].score, score_of.at(ranking[place].index), 2e-5) << queries.back();
      // Equal tools may stand either way round.
      EXPECT_NEAR(score_of.at(ranking[place].index), expected[place].at(1).get<double>(), 1e-4)
          << queries.back();
    }
  }
  expect_embeddings(queries, "query_embedding");
  expect_embeddings(tools, "tool_embedding");
  expect_embeddings(golden.at("truncated_texts").get<std::vector<std::string>>(),
                    "truncated_embedding");
}

TEST(RetrievalGolden, RecallAndReciprocalRank) {
  const Json golden = read_json_file(test::golden("retrieval/retrieval.json"));
  std::vector<EvalCase> cases;
  std::ifstream lines(test::golden("generate/train_examples.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const Json row = parse_json(line, "train_examples.jsonl");
    cases.push_back({.query = row.at("query").get<std::string>(),
                     .tools = row.at("tools").get<std::string>(),
                     .answers = row.at("answers").get<std::string>()});
  }
  for (const auto& [name, expected] : golden.at("benchmark_on_train_examples").items()) {
    const ModelEngine engine(named_model(name));
    const RetrievalCounts counts = evaluate_retrieval(
        engine, golden_tokenizer(), cases,
        {.max_tokens = golden.at("max_len").get<std::int64_t>(), .special = SpecialText::kSpecial});
    EXPECT_EQ(counts.queries, expected.at("num_queries").get<std::int64_t>());
    EXPECT_NEAR(counts.mean_reciprocal_rank(), expected.at("mrr").get<double>(), 0.03) << name;
    for (const auto& [k, recall] : expected.at("recall@k").items()) {
      EXPECT_NEAR(counts.recall(std::stoul(k)), recall.get<double>(), 0.03) << name << " at " << k;
    }
  }
}

TEST(ModelEngineTest, CachedStepsEqualTheWholeForwardPass) {
  auto config = test::small_config();
  for (const bool no_feedforward : {true, false}) {
    config.no_feedforward = no_feedforward;
    auto model = test::random_model(config, 24);
    auto prompt = some_ids(config, 9);
    prompt[4] = static_cast<TokenId>(config.pad_token_id);  // padding inside is masked, too
    auto decoder = some_ids(config, 70);                    // the caches grow on the way
    decoder[3] = static_cast<TokenId>(config.pad_token_id);
    const ModelEngine engine(model);
    const auto session = engine.start(prompt, 70);
    torch::Tensor whole;
    {
      const torch::NoGradGuard no_grad;
      const auto wide = [](const std::vector<TokenId>& ids) {
        return torch::tensor(std::vector<std::int64_t>(ids.begin(), ids.end())).unsqueeze(0);
      };
      whole = model->forward(
          {.source = wide(prompt), .decoder_in = wide(decoder), .mask_decoder_padding = false});
    }
    const double magnitude = whole.abs().max().item<double>();
    for (std::int64_t t = 0; t < 70; ++t) {
      EXPECT_EQ(session->position(), t);
      const auto logits = session->step(decoder[static_cast<std::size_t>(t)]);
      const auto row = torch::tensor(std::vector<float>(logits.begin(), logits.end()));
      ASSERT_LT(test::largest_difference(row, whole[0][t]), 1e-5 * magnitude) << t;
    }
    EXPECT_THROW(session->step(7), Error);  // beyond max_tokens
  }
}

TEST(ModelEngineTest, BatchesGiveTheTokensOfSingleRequests) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 25);
  std::vector<std::vector<TokenId>> prompts;
  for (const std::int64_t length : {12, 3, 7, 1, 20, 5, 5}) {
    prompts.push_back(some_ids(config, length));
  }
  prompts.emplace_back();  // an empty prompt is a row of padding here
  prompts.back().push_back(static_cast<TokenId>(config.pad_token_id));
  std::vector<GeneratedTokens> singles;
  {
    const ModelEngine engine(model);
    for (const auto& prompt : prompts) {
      const auto session = engine.start(prompt, 40);
      singles.push_back(generate_tokens(*session, {.max_gen_len = 40}));
    }
  }
  for (const std::int64_t rows : {1, 3, 64}) {
    const auto batch = generate_batch(model, prompts, {.max_gen_len = 40, .batch_rows = rows});
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(batch[i].ids, singles[i].ids) << rows << " rows, prompt " << i;
      EXPECT_EQ(batch[i].stop, singles[i].stop);
    }
  }
  EXPECT_TRUE(generate_batch(model, {}, {}).empty());
  const auto none = generate_batch(model, prompts, {.max_gen_len = 1});
  EXPECT_TRUE(none[0].ids.empty());
  EXPECT_EQ(none[0].stop, StopReason::kMaxTokens);
}

TEST(ModelEngineTest, DecodesInBfloat16) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 30);
  const auto prompt = some_ids(config, 9);
  const ModelEngine engine(model);
  const auto first = engine.start(prompt, 4);
  const auto exact = first->step(kEosId);
  const std::vector<float> expected(exact.begin(), exact.end());
  model->set_compute_dtype(torch::kBFloat16);
  const auto session = engine.start(prompt, 4);
  const auto logits = session->step(kEosId);
  const auto difference = test::largest_difference(
      torch::tensor(std::vector<float>(logits.begin(), logits.end())), torch::tensor(expected));
  // Eight bits of mantissa through a handful of layers.
  EXPECT_LT(difference, 0.05 * torch::tensor(expected).abs().max().item<double>());
  EXPECT_GT(difference, 0.0);
  EXPECT_FALSE(session->step(7).empty());
}

// Ends the answer of its row after a number of tokens.
class StopAfter final : public Constraint {
 public:
  StopAfter(std::size_t tokens, std::int64_t vocab_size) : left_(tokens), allowed_(vocab_size) {}
  const TokenSet* allowed(std::int64_t) override {
    allowed_.clear();
    allowed_.insert(left_ == 0 ? kEosId : 9);
    return &allowed_;
  }
  void accept(TokenId) override { --left_; }
  std::unique_ptr<Constraint> clone() const override { return std::make_unique<StopAfter>(*this); }

 private:
  std::size_t left_;
  TokenSet allowed_;
};

TEST(ModelEngineTest, RowsOfABatchEndByThemselves) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 26);
  std::vector<std::vector<TokenId>> prompts;
  std::vector<StopAfter> stops;
  for (std::size_t i = 0; i < 9; ++i) {
    prompts.push_back(some_ids(config, 3 + static_cast<std::int64_t>(i) % 4));
    stops.emplace_back(i * 5 % 9, config.vocab_size);
  }
  BatchGenerateOptions options{.max_gen_len = 30, .batch_rows = 5};
  for (StopAfter& stop : stops) {
    options.constraints.push_back(&stop);
  }
  const auto generated = generate_batch(model, prompts, options);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(generated[i].ids, std::vector<TokenId>(i * 5 % 9, 9));
    EXPECT_EQ(generated[i].stop, StopReason::kEos);
  }
}

TEST(ModelEngineTest, EmbeddingsHaveUnitLengthAndIgnorePadding) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 27);
  const auto text = some_ids(config, 6);
  auto padded = text;
  padded.push_back(static_cast<TokenId>(config.pad_token_id));
  const std::vector<std::vector<TokenId>> texts = {text, {}, padded, some_ids(config, 11)};
  const auto batch = embed_batch(model, texts, 2);
  const ModelEngine engine(model);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto single = engine.embed(texts[i]);
    ASSERT_EQ(single.size(), static_cast<std::size_t>(config.contrastive_dim));
    const float squares = std::inner_product(single.begin(), single.end(), single.begin(), 0.0f);
    EXPECT_NEAR(squares, 1.0f, 1e-5);
    for (std::size_t c = 0; c < single.size(); ++c) {
      EXPECT_NEAR(single[c], batch[i][c], 1e-5);
    }
  }
  for (std::size_t c = 0; c < batch[0].size(); ++c) {
    EXPECT_NEAR(batch[0][c], batch[2][c], 1e-5);
  }
}

TEST(ModelEngineTest, FeedsSeveralTokensAndForgetsThem) {
  const ModelEngine engine(test::random_model(test::small_config(), 29));
  const std::vector<TokenId> prompt = {7, 8, 9};
  const auto stepped = engine.start(prompt, 4);
  std::vector<float> expected;
  for (const TokenId token : {3, 4, 5, 6}) {
    const auto logits = stepped->step(token);
    expected.assign(logits.begin(), logits.end());
  }
  const auto session = engine.start(prompt, 4);
  session->feed(std::vector<TokenId>{3, 9, 8}, nullptr);
  session->rewind(1);
  EXPECT_EQ(session->position(), 1);
  const auto logits = session->feed(std::vector<TokenId>{4, 5, 6}, nullptr);
  EXPECT_EQ(std::vector<float>(logits.begin(), logits.end()), expected);
  EXPECT_THROW(session->rewind(5), Error);
  EXPECT_THROW(session->feed({}, nullptr), Error);
}

TEST(ModelEngineTest, RestoresTheModeAndRefusesForeignTokens) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 28);
  model->set_dropout_rate(0.5);
  ASSERT_TRUE(model->is_training());
  {
    const ModelEngine engine(model);
    EXPECT_FALSE(model->is_training());
    EXPECT_EQ(engine.vocab_size(), config.vocab_size);
    const std::vector<TokenId> foreign = {3, static_cast<TokenId>(config.vocab_size)};
    EXPECT_THROW(engine.start(foreign, 4), Error);
    EXPECT_THROW(engine.embed(foreign), Error);
    EXPECT_THROW(engine.start({}, 4), Error);
    const std::vector<TokenId> prompt = {7, 8};
    EXPECT_THROW(engine.start(prompt, 4)->step(-1), Error);
    EXPECT_FALSE(model->log_temp.grad().defined());
    EXPECT_TRUE(torch::GradMode::is_enabled());
  }
  EXPECT_TRUE(model->is_training());
}

TEST(ModelEngineTest, ServesSeveralThreads) {
  const auto config = test::small_config();
  auto model = test::random_model(config, 29);
  model->set_fake_quant(
      FakeQuant::kInt4);  // the kept weights are made by whichever thread comes first
  const auto prompt = some_ids(config, 8);
  const ModelEngine engine(model);
  std::vector<std::vector<TokenId>> answers(4);
  std::vector<std::thread> threads;
  for (auto& answer : answers) {
    threads.emplace_back(
        [&] { answer = generate_tokens(*engine.start(prompt, 12), {.max_gen_len = 12}).ids; });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& answer : answers) {
    EXPECT_EQ(answer, answers.front());
  }
}

}  // namespace
}  // namespace needle
