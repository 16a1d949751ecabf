#include "needle/server/job_progress.h"

#include <fstream>

#include <gtest/gtest.h>

#include "needle/core/format.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

class JobProgressTest : public ::testing::Test {
 protected:
  void append(std::string_view text) {
    std::ofstream(folder_ / "log", std::ios::app | std::ios::binary) << text;
    progress_.read(folder_ / "log");
  }
  void step(int number, double loss) {
    append(
        format("{{\"kind\":\"train\",\"step\":{},\"total_steps\":100,\"loss\":{},\"seconds\":{}}}"
               "\n",
               number, loss, 0.5 * number));
  }
  test::TemporaryFolder folder_;
  JobProgress progress_;
};

TEST_F(JobProgressTest, ReadsWhatWasAddedAlsoInHalves) {
  progress_.read(folder_ / "log");  // not there yet
  EXPECT_TRUE(progress_.to_json()["seconds_left"].is_null());
  append("{\"kind\":\"train\",\"step\":10,\"total_");
  EXPECT_TRUE(progress_.to_json()["step"].is_null());
  append("steps\":40,\"loss\":2.5,\"seconds\":5}\n");
  const Json json = progress_.to_json();
  EXPECT_EQ(json["step"], 10);
  EXPECT_EQ(json["curve"], Json::parse("[[10, 2.5]]"));
  EXPECT_DOUBLE_EQ(json["seconds_left"].get<double>(), 15.0);  // 30 more at half a second
}

TEST_F(JobProgressTest, WhatIsNoRecordIsLeftOut) {
  append("{\"kind\":\"tra\n[1,2]\n\"train\"\n{\"kind\":5}\nnoise\n");
  append("{\"kind\":\"train\",\"step\":\"x\",\"loss\":null}\n");
  EXPECT_TRUE(progress_.to_json()["curve"].empty());
  EXPECT_FALSE(progress_.finished());
}

TEST_F(JobProgressTest, AResumedRunReplacesWhatItDoesAgain) {
  step(5, 4);
  step(10, 3);
  append("{\"kind\":\"validation\",\"step\":10,\"exact_match\":0.1}\n");
  step(15, 2);
  step(10, 2.5);
  append("{\"kind\":\"validation\",\"step\":10,\"exact_match\":0.2}\n");
  const Json json = progress_.to_json();
  EXPECT_EQ(json["curve"], Json::parse("[[5, 4.0], [10, 2.5]]"));
  ASSERT_EQ(json["validation"].size(), 1U);
  EXPECT_EQ(json["validation"][0]["exact_match"], 0.2);
}

TEST_F(JobProgressTest, ALongCurveIsThinnedWithoutLosingItsEnd) {
  std::string text;
  for (int i = 1; i <= 1000; ++i) {
    text += format("{{\"kind\":\"train\",\"step\":{},\"total_steps\":1000,\"loss\":{}}}\n", i, i);
  }
  append(text);
  const Json curve = progress_.to_json()["curve"];
  EXPECT_LE(curve.size(), JobProgress::kCurvePoints);
  EXPECT_GT(curve.size(), JobProgress::kCurvePoints / 2);
  EXPECT_EQ(curve.back()[0], 1000);
  EXPECT_EQ(curve[0], Json::parse("[4, 2.5]"));  // the mean of steps 1 to 4
}

TEST_F(JobProgressTest, EvaluationsAndTheEndAreKept) {
  append(
      "{\"kind\":\"evaluation\",\"model\":\"base\",\"report\":{\"examples\":1}}\n"
      "{\"kind\":\"evaluation\",\"model\":\"finetuned\",\"report\":{\"examples\":2}}\n");
  EXPECT_FALSE(progress_.finished());
  append("{\"kind\":\"summary\",\"steps\":3}\n");
  const Json json = progress_.to_json();
  EXPECT_EQ(json["base"]["examples"], 1);
  EXPECT_EQ(json["finetuned"]["examples"], 2);
  EXPECT_TRUE(progress_.finished());
}

}  // namespace
}  // namespace needle
