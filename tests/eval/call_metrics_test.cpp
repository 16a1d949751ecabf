#include "needle/eval/call_metrics.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/json.h"
#include "needle/core/random.h"
#include "needle/eval/eval_case.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr double kTolerance = 1e-9;  // the golden README's

Json golden_metrics() { return read_json_file(test::golden("eval/metrics.json")); }

ScoredAnswer score_golden(const Json& golden, const ScoringRules& rules) {
  return score_answer(golden.at("prediction").get<std::string>(),
                      golden.at("reference").get<std::string>(),
                      golden.at("tools").get<std::string>(), rules);
}

// The reference's name of a figure to ours.
double figure(const CallCounts& counts, const std::string& key) {
  if (key == "n" || key == "num_samples") {
    return static_cast<double>(counts.examples());
  }
  const std::map<std::string, double> figures = {
      {"parse_rate", counts.parsed.ratio()},
      {"json_parse_rate", counts.parsed.ratio()},
      {"exact_match", counts.exact.ratio()},
      {"name_precision", counts.names.precision()},
      {"name_recall", counts.names.recall()},
      {"name_f1", counts.names.f1()},
      {"call_precision", counts.calls.precision()},
      {"call_recall", counts.calls.recall()},
      {"call_f1", counts.calls.f1()},
      {"args_acc", counts.arguments.ratio()},
      {"param_haluc", counts.hallucinated_keys.ratio()},
      {"param_miss", counts.missed_keys.ratio()},
      {"value_acc", counts.values.ratio()},
      {"empty_ref_pct", counts.empty_references.ratio()},
      {"empty_pred_pct", counts.empty_predictions.ratio()},
  };
  return figures.at(key);
}

double rounded(double value) {  // to four digits, as Python's round
  char text[64];
  std::snprintf(text, sizeof text, "%.4f", value);
  return std::strtod(text, nullptr);
}

void expect_figures(const CallCounts& counts, const Json& expected, bool four_digits = false) {
  for (const auto& [key, value] : expected.items()) {
    if (value.is_number()) {
      const double ours = figure(counts, key);
      EXPECT_NEAR(four_digits ? rounded(ours) : ours, value.get<double>(), kTolerance) << key;
    }
  }
}

std::vector<std::string> reasons_of(const Json& expected) {
  const Json& reasons = expected.at("reasons");
  return reasons.is_null() ? std::vector<std::string>() : reasons.get<std::vector<std::string>>();
}

void expect_failures(const Json& cases, const Json& expected, const ScoringRules& rules) {
  std::vector<std::vector<std::string>> ours;
  std::vector<std::string> queries;
  for (const Json& golden : cases) {
    const ScoredAnswer scored = score_golden(golden, rules);
    if (!scored.exact && ours.size() < expected.size()) {
      ours.push_back(scored.reasons);
      queries.push_back(golden.at("query").get<std::string>());
    }
  }
  ASSERT_EQ(ours.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(queries[i], expected[i].at("query").get<std::string>());
    EXPECT_EQ(ours[i], expected[i].at("reasons").get<std::vector<std::string>>()) << queries[i];
  }
}

CallCounts sum(const Json& cases, const ScoringRules& rules) {
  CallCounts total;
  for (const Json& golden : cases) {
    total += score_golden(golden, rules).counts;
  }
  return total;
}

TEST(CallMetricsGoldenTest, TrainingEvaluator) {
  const Json metrics = golden_metrics();
  for (const Json& golden : metrics.at("cases")) {
    SCOPED_TRACE(golden.at("why").get<std::string>());
    const ScoredAnswer scored = score_golden(golden, kReferenceTrainingRules);
    expect_figures(scored.counts, golden.at("training"));
    EXPECT_EQ(scored.reasons, reasons_of(golden.at("training")));
  }
  const Json& all = metrics.at("all").at("training");
  expect_figures(sum(metrics.at("cases"), kReferenceTrainingRules), all);
  expect_failures(metrics.at("cases"), all.at("failures"), kReferenceTrainingRules);
}

TEST(CallMetricsGoldenTest, TrainingEvaluatorByNumberOfTools) {
  const Json metrics = golden_metrics();
  std::map<std::string, CallCounts> buckets;
  for (const Json& golden : metrics.at("cases")) {
    const std::size_t tools = count_items(golden.at("tools").get<std::string>());
    buckets[std::to_string(tools)] += score_golden(golden, kReferenceTrainingRules).counts;
  }
  const Json& expected = metrics.at("all").at("training_by_tool_count");
  ASSERT_EQ(buckets.size(), expected.size());
  for (const auto& [tools, bucket] : expected.items()) {
    const CallCounts& ours = buckets.at(tools);
    const std::map<std::string, std::int64_t> counts = {
        {"n", ours.examples()},
        {"exact", ours.exact.hits},
        {"name_tp", ours.names.matched},
        {"name_fp", ours.names.wrong},
        {"name_fn", ours.names.missed},
        {"call_tp", ours.calls.matched},
        {"call_fp", ours.calls.wrong},
        {"call_fn", ours.calls.missed},
        {"parse_err", ours.parsed.total - ours.parsed.hits}};
    for (const auto& [key, value] : bucket.items()) {
      EXPECT_EQ(counts.at(key), value.get<std::int64_t>()) << tools << " tools, " << key;
    }
  }
}

TEST(CallMetricsGoldenTest, BenchmarkEvaluator) {
  const Json metrics = golden_metrics();
  for (const Json& golden : metrics.at("cases")) {
    SCOPED_TRACE(golden.at("why").get<std::string>());
    const ScoredAnswer scored = score_golden(golden, kReferenceBenchmarkRules);
    expect_figures(scored.counts, golden.at("benchmark"));
    EXPECT_EQ(scored.reasons, reasons_of(golden.at("benchmark")));
  }
  const Json& all = metrics.at("all").at("benchmark");
  expect_figures(sum(metrics.at("cases"), kReferenceBenchmarkRules), all);
  expect_failures(metrics.at("cases"), all.at("failures"), kReferenceBenchmarkRules);
}

TEST(CallMetricsGoldenTest, FinetuneEvaluator) {
  const Json metrics = golden_metrics();
  const auto expect_case = [](const CallCounts& counts, const Json& expected) {
    if (expected.empty()) {  // no reference call: left out
      EXPECT_EQ(counts.examples(), 0);
      return;
    }
    expect_figures(counts, expected, /*four_digits=*/true);
    ASSERT_EQ(counts.tools.size(), expected.at("per_tool").size());
    for (const auto& [tool, score] : expected.at("per_tool").items()) {
      EXPECT_EQ(counts.tools.at(tool), (ToolScore{score.at("correct").get<std::int64_t>(),
                                                  score.at("total").get<std::int64_t>()}))
          << tool;
    }
  };
  for (const Json& golden : metrics.at("cases")) {
    SCOPED_TRACE(golden.at("why").get<std::string>());
    expect_case(score_golden(golden, kReferenceFinetuneRules).counts, golden.at("finetune"));
  }
  expect_case(sum(metrics.at("cases"), kReferenceFinetuneRules), metrics.at("all").at("finetune"));
}

constexpr std::string_view kTools =
    R"([{"name":"getWeather","parameters":{"city":{"type":"string"},"days":{"type":"integer"}}}])";
constexpr std::string_view kParis = R"([{"name":"getWeather","arguments":{"city":"Paris"}}])";

ScoredAnswer score(std::string_view prediction, std::string_view reference,
                   const ScoringRules& rules = kStrictRules) {
  return score_answer(prediction, reference, kTools, rules);
}

TEST(CallMetricsTest, MalformedOutputIsAWrongCallAndNeverThrows) {
  for (const std::string_view prediction :
       {R"([{"name":"getWeather","arguments":null}])", R"([{"name":"getWeather","arguments":[1]}])",
        R"([{"name":"getWeather","arguments":"Paris"}])",
        R"([{"name":5,"arguments":{"city":"Paris"}}])",
        R"([{"name":null,"arguments":{"city":"Paris"}}])", R"([{"name":{"a":1}}])", R"([{}])"}) {
    for (const ScoringRules& rules : {kStrictRules, kLooseRules, kReferenceTrainingRules,
                                      kReferenceBenchmarkRules, kReferenceFinetuneRules}) {
      SCOPED_TRACE(prediction);
      const ScoredAnswer scored = score(prediction, kParis, rules);
      EXPECT_FALSE(scored.exact);
      EXPECT_EQ(scored.counts.calls.matched, 0);
      EXPECT_EQ(scored.counts.calls.wrong, 1);
      EXPECT_EQ(scored.counts.calls.missed, 1);
      EXPECT_EQ(scored.counts.arguments.hits, 0);
      EXPECT_EQ(scored.counts.parsed.hits, 1);
      EXPECT_FALSE(scored.reasons.empty());
    }
  }
  // The same nonsense in the reference does not make it right.
  constexpr std::string_view kBroken = R"([{"name":"getWeather","arguments":null}])";
  EXPECT_EQ(score(kBroken, kBroken).counts.arguments.hits, 0);
}

TEST(CallMetricsTest, HostileTextsAreParseErrors) {
  const std::string deep(100000, '[');
  for (const std::string_view prediction : {std::string_view(deep), std::string_view("\xFF\xFE"),
                                            std::string_view("[{\"name\":\"\\u")}) {
    const ScoredAnswer scored = score(prediction, kParis);
    EXPECT_EQ(scored.counts.parsed.hits, 0);
    EXPECT_THAT(scored.reasons, ::testing::Contains("json_parse_error"));
  }
}

TEST(CallMetricsTest, DamagedTextsAreScoredWithoutThrowing) {
  Random random(11);
  constexpr std::string_view kBytes = "[]{}\",:\\ 0aN\xC3\xFF";
  for (int round = 0; round < 2000; ++round) {
    std::string texts[3] = {std::string(kParis), std::string(kParis), std::string(kTools)};
    for (std::string& text : texts) {
      for (std::uint32_t edits = random.below(4); edits > 0; --edits) {
        const std::size_t at = random.below(static_cast<std::uint32_t>(text.size()));
        if (random.below(2) == 0) {
          text.erase(at, 1 + random.below(5));
        } else {
          text.insert(at, 1, kBytes[random.below(static_cast<std::uint32_t>(kBytes.size()))]);
        }
      }
    }
    for (const ScoringRules& rules : {kStrictRules, kLooseRules, kReferenceFinetuneRules}) {
      const ScoredAnswer scored = score_answer(texts[0], texts[1], texts[2], rules);
      EXPECT_EQ(scored.exact || scored.counts.examples() == 0, scored.reasons.empty()) << texts[0];
      EXPECT_LE(scored.counts.calls.matched, scored.counts.parsed.hits);
    }
  }
}

TEST(CallMetricsTest, StrictAndLooseDifferWhereTheyShould) {
  const auto exact = [](std::string_view prediction, std::string_view reference) {
    return std::pair(score(prediction, reference, kStrictRules).exact,
                     score(prediction, reference, kLooseRules).exact);
  };
  EXPECT_THAT(exact(kParis, kParis), Pair(true, true));
  EXPECT_THAT(exact(R"([{"name":"get_weather","arguments":{"city":"Paris"}}])", kParis),
              Pair(false, true));
  EXPECT_THAT(exact(R"([{"name":"getWeather","arguments":{"city":" PARIS "}}])", kParis),
              Pair(false, true));
  EXPECT_THAT(exact(R"([{"name":"getWeather","arguments":{"city":"Rome"}}])", kParis),
              Pair(false, false));
  EXPECT_THAT(exact(R"([{"name":"getWeather"}])", R"([{"name":"getWeather","arguments":{}}])"),
              Pair(false, true));
  EXPECT_THAT(exact("[ ]", "[]"), Pair(true, true));  // unlike the reference's training evaluator
  EXPECT_THAT(exact("", "[]"), Pair(true, true));
}

TEST(CallMetricsTest, CountsRightToolsAndFalseCalls) {
  CallCounts counts = score(kParis, "[]").counts;
  EXPECT_EQ(counts.false_calls.ratio(), 1.0);
  counts += score("[]", "[]").counts;
  EXPECT_EQ(counts.false_calls.ratio(), 0.5);
  counts += score(kParis, kParis).counts;
  EXPECT_EQ(counts.false_calls.ratio(), 0.5) << "rows with a call do not matter";
  EXPECT_EQ(counts.right_tools.hits, 2);
  EXPECT_EQ(counts.right_tools.total, 3);
  // The right tool with wrong arguments is still the right tool; a text that does not parse is not.
  EXPECT_EQ(score(R"([{"name":"getWeather","arguments":{}}])", kParis).counts.right_tools.hits, 1);
  EXPECT_EQ(score("no call", "[]").counts.right_tools.hits, 0);
}

TEST(CallMetricsTest, KnowsThePropertiesOfJsonSchemaTools) {
  constexpr std::string_view kSchema =
      R"([{"name":"f","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}])";
  constexpr std::string_view kAnswer = R"([{"name":"f","arguments":{"city":"x"}}])";
  EXPECT_EQ(score_answer(kAnswer, kAnswer, kSchema, kStrictRules).counts.hallucinated_keys.hits, 0);
  EXPECT_EQ(score_answer(kAnswer, kAnswer, kSchema, kReferenceTrainingRules)
                .counts.hallucinated_keys.hits,
            1);
}

TEST(CallMetricsTest, ExplainsEveryDifference) {
  EXPECT_THAT(
      score(R"([{"name":"getWeather","arguments":{"city":"Rome","x":[1,2]}},{"name":"b"}])", kParis)
          .reasons,
      ElementsAre(R"(value_mismatch:getWeather.city="Rome"!="Paris")",
                  R"(value_mismatch:getWeather.x=[1, 2]!="<MISSING>")", "wrong_tools:b"));
  EXPECT_TRUE(score(kParis, kParis).reasons.empty());
}

TEST(CallMetricsTest, RatiosOfNothingAreZero) {
  const CallCounts nothing;
  EXPECT_EQ(nothing.exact.ratio(), 0.0);
  EXPECT_EQ(nothing.calls.f1(), 0.0);
  EXPECT_EQ(nothing.calls.precision(), 0.0);
  EXPECT_EQ(nothing.calls.recall(), 0.0);
}

TEST(EvalCaseTest, CountsItems) {
  EXPECT_EQ(count_items("[]"), 0U);
  EXPECT_EQ(count_items(R"([{"a":1},2])"), 2U);
  EXPECT_EQ(count_items(R"({"a":1})"), 1U);
  EXPECT_EQ(count_items("7"), 0U);
  EXPECT_EQ(count_items("nonsense"), 0U);
}

}  // namespace
}  // namespace needle
