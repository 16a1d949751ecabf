#include "needle/train/schedule.h"

#include <string>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/json.h"

#include "tests/support/golden.h"

namespace needle::test {
namespace {

TEST(ScheduleTest, ClimbsStaysFallsAndRests) {
  const Schedule schedule({.warmup_ratio = 0.1, .decay_ratio = 0.2, .final_ratio = 0.05}, 100);
  EXPECT_EQ(schedule.scale(0), 0.0);
  EXPECT_DOUBLE_EQ(schedule.scale(5), 0.5);
  EXPECT_EQ(schedule.scale(10), 1.0);
  EXPECT_EQ(schedule.scale(79), 1.0);
  EXPECT_EQ(schedule.scale(80), 1.0);
  EXPECT_DOUBLE_EQ(schedule.scale(90), 0.525);  // half way down a cosine from 1 to 0.05
  EXPECT_DOUBLE_EQ(schedule.scale(100), 0.05);
  EXPECT_DOUBLE_EQ(schedule.scale(1'000'000), 0.05);
}

TEST(ScheduleTest, StepsOverrideRatios) {
  const Schedule schedule({.warmup_steps = 7, .decay_steps = 40}, 100);
  EXPECT_EQ(schedule.warmup_steps(), 7);
  EXPECT_EQ(schedule.decay_steps(), 40);
  EXPECT_LT(schedule.scale(61), 1.0);
}

TEST(ScheduleTest, ZeroRatiosStillTakeOneStep) {
  const Schedule schedule({.warmup_ratio = 0.0, .decay_ratio = 0.0}, 50);
  EXPECT_EQ(schedule.warmup_steps(), 1);
  EXPECT_EQ(schedule.decay_steps(), 1);
}

TEST(ScheduleTest, RefusesSettingsOutOfRangeByName) {
  const auto message = [](const ScheduleConfig& config, std::int64_t steps) -> std::string {
    try {
      Schedule(config, steps);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({.warmup_ratio = 1.5}, 10).find("warmup_ratio = 1.5"), std::string::npos);
  EXPECT_NE(message({.decay_ratio = -0.1}, 10).find("decay_ratio"), std::string::npos);
  EXPECT_NE(message({.decay_steps = 0}, 10).find("decay_steps"), std::string::npos);
  EXPECT_NE(message({}, -1), "");
  EXPECT_EQ(message({}, 0), "");
}

TEST(ScheduleGoldenTest, RatesAreTheReferences) {
  const Json runs = read_json_file(golden("optim/schedule.json"));
  ASSERT_FALSE(runs.empty());
  for (const auto& run : runs) {
    const double peak = run.at("peak");
    const Schedule schedule({.decay_ratio = run.at("decay_ratio"),
                             .warmup_steps = run.at("warmup_steps").get<std::int64_t>()},
                            run.at("total_steps"));
    EXPECT_EQ(schedule.decay_steps(), run.at("decay_steps").get<std::int64_t>());
    for (const auto& point : run.at("lr")) {
      EXPECT_NEAR(peak * schedule.scale(point.at(0)), point.at(1).get<double>(), 1e-5 * peak)
          << run.at("total_steps") << " steps, at " << point.at(0);
    }
  }
}

TEST(ScheduleGoldenTest, StepCountsAreTheReferences) {
  const Json cases = read_json_file(golden("optim/warmup_steps.json"));
  ASSERT_FALSE(cases.empty());
  for (const auto& wanted : cases) {
    const double ratio = wanted.at("ratio");
    const Schedule schedule({.warmup_ratio = ratio, .decay_ratio = ratio}, wanted.at("total"));
    EXPECT_EQ(schedule.warmup_steps(), wanted.at("warmup").get<std::int64_t>()) << wanted;
    EXPECT_EQ(schedule.decay_steps(), wanted.at("decay").get<std::int64_t>()) << wanted;
  }
}

}  // namespace
}  // namespace needle::test
