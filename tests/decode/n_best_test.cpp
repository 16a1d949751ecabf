#include "needle/decode/n_best.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {
namespace {

constexpr std::int64_t kVocab = 6;

// Logits drawn from the tokens fed so far: a small language model that can be searched by hand.
class RandomModel : public EngineSession {
 public:
  explicit RandomModel(std::uint64_t seed) : seed_(seed) {}
  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet*) override {
    fed_.insert(fed_.end(), tokens.begin(), tokens.end());
    asked += std::ssize(tokens);
    logits_ = logits_of(fed_);
    return logits_;
  }
  std::int64_t position() const override { return std::ssize(fed_); }
  void rewind(std::int64_t position) override { fed_.resize(static_cast<std::size_t>(position)); }

  std::vector<float> logits_of(std::span<const TokenId> fed) const {
    std::uint64_t state = seed_;
    for (const TokenId id : fed) {
      state = state * 6364136223846793005ULL + static_cast<std::uint64_t>(id) + 1;
    }
    Random random(state);
    std::vector<float> logits;
    for (std::int64_t id = 0; id < kVocab; ++id) {
      logits.push_back(static_cast<float>(random.below(400)) / 100.0F);
    }
    return logits;
  }

  std::int64_t asked = 0;

 private:
  std::uint64_t seed_;
  std::vector<TokenId> fed_;
  std::vector<float> logits_;
};

// Every answer of at most `left` tokens with its probability.
void enumerate(const RandomModel& model, std::vector<TokenId>& fed, std::int64_t left,
               double log_probability, std::map<double, std::vector<TokenId>>& all) {
  if (left == 0) {
    all[log_probability] = {fed.begin() + 1, fed.end()};
    return;
  }
  const std::vector<float> logits = model.logits_of(fed);
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit));
  }
  for (TokenId id = 0; id < kVocab; ++id) {
    const double next =
        log_probability + static_cast<double>(logits[static_cast<std::size_t>(id)]) - std::log(sum);
    if (id == kEosId) {
      all[next] = {fed.begin() + 1, fed.end()};
      continue;
    }
    fed.push_back(id);
    enumerate(model, fed, left - 1, next, all);
    fed.pop_back();
  }
}

TEST(NBestTest, FindsTheMostProbableAnswersOfAll) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    RandomModel model(seed);
    std::map<double, std::vector<TokenId>> all;
    std::vector<TokenId> fed = {kEosId};
    enumerate(model, fed, 4, 0, all);
    const NBest best =
        n_best_tokens(model, nullptr, {.count = 3, .max_gen_len = 5, .max_expansions = 2000});
    ASSERT_TRUE(best.exact);
    ASSERT_EQ(best.answers.size(), 3U);
    auto expected = all.rbegin();
    for (const ScoredTokens& answer : best.answers) {
      EXPECT_NEAR(answer.log_probability, expected->first, 1e-9) << "seed " << seed;
      EXPECT_EQ(answer.ids, expected->second) << "seed " << seed;
      ++expected;
    }
  }
}

TEST(NBestTest, FollowsNoMoreWaysThanAsked) {
  RandomModel model(3);
  const NBest best =
      n_best_tokens(model, nullptr, {.count = 4, .max_gen_len = 40, .max_expansions = 5});
  EXPECT_EQ(best.expansions, 5);
  EXPECT_LE(best.answers.size(), 4U);
  EXPECT_TRUE(
      std::ranges::is_sorted(best.answers, std::ranges::greater(), &ScoredTokens::log_probability));
  EXPECT_THROW(n_best_tokens(model, nullptr, {.count = 0}), Error);
}

TEST(NBestTest, EndsWhenItIsCancelled) {
  RandomModel model(3);
  int asked = 0;
  const NBest best = n_best_tokens(
      model, nullptr, {.count = 4, .max_gen_len = 40, .cancelled = [&] { return ++asked == 5; }});
  EXPECT_TRUE(best.cancelled);
  EXPECT_FALSE(best.exact);
  EXPECT_EQ(asked, 5);
}

TEST(NBestTest, TheFirstWayIsTheGreedyAnswer) {
  RandomModel model(5);
  const NBest one =
      n_best_tokens(model, nullptr, {.count = 1, .max_gen_len = 9, .max_expansions = 1});
  model.rewind(0);
  EXPECT_EQ(one.answers.at(0).ids, generate_tokens(model, {.max_gen_len = 9}).ids);
}

}  // namespace
}  // namespace needle
