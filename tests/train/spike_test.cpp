#include "needle/train/spike.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/fields.h"
#include "needle/core/random.h"

namespace needle {
namespace {

using testing::HasSubstr;

// A run's figures: feeds steps and counts those that were called spikes.
class Feed {
 public:
  explicit Feed(const SpikeConfig& config = {}) : config_(config) {}
  std::string good_or_bad(double loss, double grad_norm = 0.5, bool skipped = false) {
    return note_step(config_,
                     {.step = ++step_,
                      .skipped = skipped,
                      .loss = loss,
                      .grad_norm = grad_norm,
                      .max_grad_norm = 1.0},
                     state);
  }
  bool spiked() const { return has_spiked(config_, state); }
  SpikeState state;

 private:
  SpikeConfig config_;
  std::int64_t step_ = 0;
};

TEST(SpikeTest, OrdinaryNoiseNeverSpikes) {
  Random random(3);
  Feed feed;
  for (int i = 0; i < 20000; ++i) {
    // Falls as a loss does, with noise and a hard batch in twenty; gradients over two decades.
    const double hard = random.below(20) == 0 ? 2.0 * random.uniform() : 0.0;
    feed.good_or_bad(1.0 + 8.0 * std::exp(-i / 300.0) + 0.1 * random.normal() + hard,
                     std::exp(random.normal()));
    ASSERT_FALSE(feed.spiked()) << "step " << i;
  }
}

TEST(SpikeTest, AJumpThatStaysIsASpikeAfterSoManySteps) {
  Random random(3);
  Feed feed({.steps = 3});
  for (int i = 0; i < 60; ++i) {
    ASSERT_EQ(feed.good_or_bad(3.0 + 0.05 * random.normal()), "");
  }
  EXPECT_THAT(feed.good_or_bad(4.0), HasSubstr("the loss 4 is far above the usual 3"));
  EXPECT_FALSE(feed.spiked());
  EXPECT_NE(feed.good_or_bad(4.1), "");
  EXPECT_EQ(feed.good_or_bad(3.0), "");  // an outlier, forgotten
  EXPECT_EQ(feed.state.since, 0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(feed.spiked());
    EXPECT_NE(feed.good_or_bad(4.0), "");
  }
  EXPECT_TRUE(feed.spiked());
  EXPECT_EQ(feed.state.since, 64);
}

TEST(SpikeTest, GradientNormsCountWhenTheyAreClippedAndFarAboveTheUsual) {
  Feed feed({.steps = 1});
  for (int i = 0; i < 60; ++i) {
    ASSERT_EQ(feed.good_or_bad(3.0, 0.01), "");
  }
  EXPECT_EQ(feed.good_or_bad(3.0, 0.9), "");  // ninety times as large, but not clipped
  EXPECT_THAT(feed.good_or_bad(3.0, 1.1), HasSubstr("the gradient norm 1.1 is far above"));
  EXPECT_TRUE(feed.spiked());

  Feed indifferent({.grad_norm_factor = 0.0, .steps = 1});
  for (int i = 0; i < 60; ++i) {
    indifferent.good_or_bad(3.0, 0.01);
  }
  EXPECT_EQ(indifferent.good_or_bad(3.0, 1e6), "");
}

TEST(SpikeTest, NothingIsJudgedBeforeEnoughIsKnownOrWhenTurnedOff) {
  Feed early({.window = 20, .min_steps = 10, .steps = 1});
  for (int i = 0; i < 9; ++i) {
    early.good_or_bad(1.0);
  }
  EXPECT_EQ(early.good_or_bad(50.0), "");  // the tenth; now it is known
  EXPECT_NE(early.good_or_bad(50.0), "");
  Feed off({.enabled = false, .min_steps = 10, .steps = 1});
  for (int i = 0; i < 60; ++i) {
    off.good_or_bad(1.0);
  }
  EXPECT_EQ(off.good_or_bad(1e9), "");
  EXPECT_FALSE(off.spiked());
}

TEST(SpikeTest, SkippedStepsBeginAndProlongButAreNoSpikes) {
  Feed feed({.steps = 2});
  for (int i = 0; i < 60; ++i) {
    feed.good_or_bad(1.0);
  }
  EXPECT_EQ(feed.good_or_bad(std::nan(""), std::nan(""), /*skipped=*/true), "");
  EXPECT_EQ(feed.state.since, 61);
  EXPECT_NE(feed.good_or_bad(9.0), "");
  feed.good_or_bad(std::nan(""), std::nan(""), /*skipped=*/true);
  EXPECT_FALSE(feed.spiked());
  EXPECT_NE(feed.good_or_bad(9.0), "");
  EXPECT_TRUE(feed.spiked());
  EXPECT_EQ(feed.state.since, 61);
  EXPECT_EQ(feed.state.losses.size(), 60U);  // none of these is usual
}

TEST(SpikeTest, TheStateIsAWindowAndSurvivesJson) {
  Random random(5);
  Feed feed({.window = 30, .min_steps = 10});
  for (int i = 0; i < 50; ++i) {
    feed.good_or_bad(random.uniform(), random.uniform());
  }
  feed.good_or_bad(1.0, 0.0);  // no gradient at all
  EXPECT_EQ(feed.state.losses.size(), 30U);
  const auto read = from_json<SpikeState>(Json::parse(to_json(feed.state).dump()), "state");
  EXPECT_EQ(read.losses, feed.state.losses);
  EXPECT_EQ(read.grad_norms, feed.state.grad_norms);
}

}  // namespace
}  // namespace needle
