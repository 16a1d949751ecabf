#include "needle/train/batch_answers.h"

#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/model/model_engine.h"

#include "tests/support/golden.h"
#include "tests/train/tiny_training.h"

namespace needle::test {
namespace {

TEST(BatchAnswersTest, AreThoseOfOneQueryAtATime) {
  const Tokenizer tokenizer = Tokenizer::load(golden("tokenizer/tiny.model"));
  ModelConfig config = tiny_config();
  config.vocab_size = tokenizer.vocab_size();
  config.max_seq_len = 512;
  Needle model(config);
  init_parameters(model, InitMethod::kCopy, 3);
  {
    const torch::NoGradGuard no_grad;  // open gates: answers then depend on their queries
    torch::manual_seed(4);
    for (const auto& parameter : model->parameters()) {
      if (parameter.dim() == 0) {
        parameter.fill_(2.0);
      }
    }
  }
  std::vector<EvalCase> cases;
  for (int i = 0; i < 7; ++i) {
    const std::string word(static_cast<std::size_t>(1 + 5 * i), static_cast<char>('a' + i));
    cases.push_back(
        {.query = "play " + word,
         .tools = R"([{"name":"PlayMusic","description":")" + word + R"(","parameters":{}}])",
         .answers = "[]"});
  }
  const PromptConfig prompt{.max_enc_len = 96, .max_dec_len = 24};
  const Predictions batched = predict_calls_in_batches(model, tokenizer, prompt, cases,
                                                       {.max_gen_len = 20, .batch_rows = 3});
  const ModelEngine engine(model);
  const FunctionCaller caller(engine, tokenizer, prompt);
  const Predictions single =
      predict_calls(caller, cases, {.max_gen_len = 20, .constrain = Constrain::kNone});
  std::set<std::string> texts;
  ASSERT_EQ(batched.items.size(), cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(batched.items[i].ids, single.items[i].ids);
    EXPECT_EQ(batched.items[i].text, single.items[i].text);
    EXPECT_EQ(batched.items[i].stop, single.items[i].stop);
    EXPECT_EQ(batched.items[i].cut_tokens, single.items[i].cut_tokens);
    EXPECT_FALSE(single.items[i].ids.empty());
    texts.insert(single.items[i].text);
  }
  EXPECT_GT(texts.size(), 2u);
}

}  // namespace
}  // namespace needle::test
