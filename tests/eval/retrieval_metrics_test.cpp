#include "needle/eval/retrieval_metrics.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

std::vector<RankedTool> ranking(std::initializer_list<std::size_t> order) {
  std::vector<RankedTool> ranked;
  for (const std::size_t index : order) {
    ranked.push_back({.index = index, .score = 0});
  }
  return ranked;
}

TEST(RetrievalCountsTest, CountsTheFirstRightTool) {
  RetrievalCounts counts;
  counts.add(ranking({2, 0, 1}), std::vector<std::size_t>{0, 1});           // rank 2
  counts.add(ranking({2, 0, 1}), std::vector<std::size_t>{2});              // rank 1
  counts.add(ranking({2, 0, 1}), {});                                       // nothing to find
  counts.add(ranking({6, 5, 4, 3, 2, 1, 0}), std::vector<std::size_t>{0});  // rank 7
  EXPECT_EQ(counts.queries, 3);
  EXPECT_DOUBLE_EQ(counts.recall(1), 1.0 / 3);
  EXPECT_DOUBLE_EQ(counts.recall(2), 2.0 / 3);
  EXPECT_DOUBLE_EQ(counts.recall(5), 2.0 / 3);
  EXPECT_DOUBLE_EQ(counts.mean_reciprocal_rank(), (0.5 + 1.0 + 1.0 / 7) / 3);
  EXPECT_THROW(counts.recall(0), Error);
  EXPECT_THROW(counts.recall(kRecallDepth + 1), Error);
}

TEST(EvaluateRetrievalTest, RanksTheToolsOfEachCase) {
  const Tokenizer tokenizer = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  // Texts with an "x" point one way, the others another.
  const test::ScriptedEngine engine(
      tokenizer.vocab_size(), [](auto) { return std::vector<TokenId>(); },
      [&](std::span<const TokenId> ids) {
        const bool x = tokenizer.decode(ids).find('x') != std::string::npos;
        return x ? std::vector<float>{1, 0} : std::vector<float>{0.6F, 0.8F};
      });
  const std::string tools = R"([{"name":"bbb"},{"name":"xyz"}])";
  const std::vector<EvalCase> cases = {
      {.query = "x", .tools = tools, .answers = R"([{"name":"xyz","arguments":{}}])"},
      {.query = "x", .tools = tools, .answers = R"([{"name":"bbb","arguments":{}}])"},
      {.query = "x", .tools = tools, .answers = "[]"},
      {.query = "x", .tools = "nonsense", .answers = R"([{"name":"bbb"}])"},
      {.query = "x", .tools = tools, .answers = R"([{"name":7},5])"}};
  std::size_t told = 0;
  const RetrievalCounts counts =
      evaluate_retrieval(engine, tokenizer, cases, {}, [&](std::size_t done) { told = done; });
  EXPECT_EQ(counts.queries, 2);
  EXPECT_DOUBLE_EQ(counts.recall(1), 0.5);
  EXPECT_DOUBLE_EQ(counts.recall(2), 1.0);
  EXPECT_DOUBLE_EQ(counts.mean_reciprocal_rank(), 0.75);
  EXPECT_EQ(told, cases.size());
}

}  // namespace
}  // namespace needle
