#include "needle/eval/calibrate.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {
namespace {

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// A model that is too sure of itself: right with sigmoid(slope * odds + intercept).
std::vector<Judged> sample_of(double slope, double intercept, std::size_t count) {
  Random random(3);
  std::vector<Judged> sample;
  for (std::size_t i = 0; i < count; ++i) {
    const double odds = 4 * random.normal() + 3;
    sample.push_back({.probability = sigmoid(odds),
                      .right = random.uniform() < sigmoid(slope * odds + intercept)});
  }
  return sample;
}

TEST(FitPlattTest, FindsTheLineThatMadeTheSample) {
  const PlattScale scale = fit_platt(sample_of(0.5, -1, 20000));
  // The standard errors of such a sample are 0.006 and 0.03; five of them.
  EXPECT_NEAR(scale.slope, 0.5, 0.03);
  EXPECT_NEAR(scale.intercept, -1, 0.15);
  EXPECT_EQ(scale.examples, 20000);
}

TEST(FitPlattTest, ASampleWithoutMistakesGivesNoCertainty) {
  const std::vector<Judged> sample(20, {.probability = 0.9, .right = true});
  const double sure = calibrated(fit_platt(sample), 0.9);
  EXPECT_NEAR(sure, 21.0 / 22, 1e-3) << "Platt's target";
  EXPECT_LT(calibrated(fit_platt(sample), 1.0), 1.0);
  const std::vector<Judged> wrong(1, {.probability = 1, .right = false});
  EXPECT_TRUE(std::isfinite(calibrated(fit_platt(wrong), 0)));
  EXPECT_THROW(fit_platt({}), Error);
}

TEST(FitPlattTest, NeverFallsAsTheModelGetsSurer) {
  std::vector<Judged> upside_down = sample_of(1, 0, 500);
  for (Judged& judged : upside_down) {
    judged.right = !judged.right;
  }
  const PlattScale scale = fit_platt(upside_down);
  EXPECT_EQ(scale.slope, 0);
  EXPECT_LE(calibrated(scale, 0.1), calibrated(scale, 0.9));
}

TEST(CalibratedTest, WithoutAFitTheProbabilityStays) {
  EXPECT_EQ(calibrated(PlattScale{}, 0.37), 0.37);
  EXPECT_TRUE(std::isfinite(log_odds(0)));
  EXPECT_TRUE(std::isfinite(log_odds(1)));
  EXPECT_NEAR(log_odds(0.75), std::log(3.0), 1e-12);
}

TEST(CalibrationErrorTest, IsTheGapBetweenSureAndRight) {
  std::vector<Judged> sample;
  for (int i = 0; i < 100; ++i) {
    sample.push_back({.probability = 0.9, .right = i % 10 < 7});
  }
  EXPECT_NEAR(expected_calibration_error(sample, 1), 0.2, 1e-12);
  EXPECT_NEAR(brier_score(sample), 0.7 * 0.01 + 0.3 * 0.81, 1e-12);
  EXPECT_EQ(expected_calibration_error({}), 0);
}

TEST(CoverageTest, TakesTheSurestFirstAndEquallySureOnesTogether) {
  const std::vector<Judged> sample = {{0.9, true}, {0.8, true}, {0.8, false}, {0.1, false}};
  const auto chosen = threshold_for(sample, 0.6);
  ASSERT_TRUE(chosen);
  EXPECT_EQ(chosen->threshold, 0.8);
  EXPECT_EQ(chosen->coverage, 0.75);
  EXPECT_NEAR(chosen->precision, 2.0 / 3, 1e-12);
  EXPECT_EQ(threshold_for(sample, 0.9)->threshold, 0.9) << "never between equals";
  EXPECT_FALSE(threshold_for(std::vector<Judged>{{0.5, false}}, 0.5));
  const auto curve = coverage_curve(sample);
  EXPECT_EQ(curve.front().coverage, 1);
  EXPECT_EQ(curve.front().precision, 0.5);
  EXPECT_EQ(curve.back().precision, 1);
}

TEST(CrossValidateTest, CalibrationHelpsOnUnseenExamples) {
  const CalibrationReport report = cross_validate(sample_of(0.4, -1, 2000));
  EXPECT_EQ(report.held_out.size(), 2000U);
  EXPECT_GT(report.ece_before, 0.1) << "the sample is not calibrated";
  EXPECT_LT(report.ece_after, 0.04);
  EXPECT_LT(report.brier_after, report.brier_before);
  EXPECT_EQ(cross_validate(sample_of(1, 0, 3)).held_out.size(), 3U);
}

TEST(JudgeTest, ComparesCallsOneByOne) {
  const std::vector<EvalCase> cases = {
      {.query = "q",
       .tools = R"([{"name":"a","parameters":{}},{"name":"b","parameters":{}}])",
       .answers = R"([{"name":"a","arguments":{"x":1}},{"name":"b","arguments":{}}])"},
      {.query = "q", .tools = "[]", .answers = "[]"}};
  Predictions predictions;
  predictions.items.resize(2);
  predictions.items[0].text = R"([{"name":"b","arguments":{}},{"name":"a","arguments":{"x":2}}])";
  predictions.items[0].confidence = AnswerConfidence{
      .probability = 0.4,
      .calls = {{.name = "b", .probability = 0.8}, {.name = "a", .probability = 0.5}}};
  predictions.items[1].text = "[]";
  predictions.items[1].confidence = AnswerConfidence{.probability = 0.9};
  const JudgedAnswers judged = judge(cases, predictions);
  ASSERT_EQ(judged.answers.size(), 2U);
  EXPECT_FALSE(judged.answers[0].right);
  EXPECT_TRUE(judged.answers[1].right);
  ASSERT_EQ(judged.calls.size(), 2U);
  EXPECT_TRUE(judged.calls[0].right);
  EXPECT_EQ(judged.calls[0].probability, 0.8);
  EXPECT_FALSE(judged.calls[1].right);
  predictions.items[1].confidence.reset();
  EXPECT_THROW(judge(cases, predictions), Error);
}

}  // namespace
}  // namespace needle
