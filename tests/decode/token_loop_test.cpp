#include "needle/decode/token_loop.h"

#include <cmath>
#include <limits>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/decode/scripted_engine.h"

namespace needle {
namespace {

using ::testing::ElementsAre;

TEST(TokenLoopTest, StartsFromEosAndStopsAtEos) {
  test::ScriptedSession session({7, 9, 8}, 16);
  const GeneratedTokens generated = generate_tokens(session, {});
  EXPECT_THAT(generated.ids, ElementsAre(7, 9, 8));
  EXPECT_EQ(generated.stop, StopReason::kEos);
  EXPECT_THAT(session.fed(), ElementsAre(kEosId, 7, 9, 8));
}

TEST(TokenLoopTest, GivesAtMostOneTokenLessThanTheLength) {
  for (const std::int64_t length : {1, 2, 4}) {
    test::ScriptedSession session(std::vector<TokenId>(10, 5), 16);
    const GeneratedTokens generated = generate_tokens(session, {.max_gen_len = length});
    EXPECT_EQ(static_cast<std::int64_t>(generated.ids.size()), length - 1);
    EXPECT_EQ(generated.stop, StopReason::kMaxTokens);
    EXPECT_EQ(session.position(), length - 1) << "no step whose logits nobody reads";
  }
  test::ScriptedSession session({}, 16);
  EXPECT_THROW(generate_tokens(session, {.max_gen_len = 0}), Error);
}

// Fixed logits at every step.
class ConstantSession : public EngineSession {
 public:
  explicit ConstantSession(std::vector<float> logits) : logits_(std::move(logits)) {}
  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet*) override {
    position_ += std::ssize(tokens);
    return logits_;
  }
  void rewind(std::int64_t position) override { position_ = position; }
  std::int64_t position() const override { return position_; }

 private:
  std::vector<float> logits_;
  std::int64_t position_ = 0;
};

TEST(TokenLoopTest, TakesTheLowestIdOfATie) {
  ConstantSession session({0, 1, 2, 5, 5, 5});
  EXPECT_THAT(generate_tokens(session, {.max_gen_len = 2}).ids, ElementsAre(3));
}

TEST(TokenLoopTest, SkipsNanAndRefusesNothingButNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float low = -std::numeric_limits<float>::infinity();
  ConstantSession some({nan, low, nan, 4, nan});
  EXPECT_THAT(generate_tokens(some, {.max_gen_len = 2}).ids, ElementsAre(3));
  ConstantSession lowest({nan, nan, low, nan});
  EXPECT_THAT(generate_tokens(lowest, {.max_gen_len = 2}).ids, ElementsAre(2));
  ConstantSession none({nan, nan});
  EXPECT_THROW(generate_tokens(none, {}), Error);
}

TEST(TokenLoopTest, CancelsAfterTheToken) {
  test::ScriptedSession session({7, 9, 8}, 16);
  std::vector<TokenId> seen;
  const auto on_token = [&](TokenId id) {
    seen.push_back(id);
    return seen.size() < 2;
  };
  const GeneratedTokens generated = generate_tokens(session, {.on_token = on_token});
  EXPECT_THAT(generated.ids, ElementsAre(7, 9));
  EXPECT_THAT(seen, ElementsAre(7, 9));
  EXPECT_EQ(generated.stop, StopReason::kCancelled);
}

// Forbids one id; remembers what it was told.
class ForbidOne : public Constraint {
 public:
  ForbidOne(TokenId id, std::int64_t vocab_size) : allowed_(vocab_size) {
    for (TokenId other = 0; other < vocab_size; ++other) {
      if (other != id) {
        allowed_.insert(other);
      }
    }
  }
  const TokenSet* allowed(std::int64_t tokens_left) override {
    budgets.push_back(tokens_left);
    return &allowed_;
  }
  void accept(TokenId token) override { accepted.push_back(token); }
  std::unique_ptr<Constraint> clone() const override { return std::make_unique<ForbidOne>(*this); }
  std::vector<TokenId> accepted;
  std::vector<std::int64_t> budgets;

 private:
  TokenSet allowed_;
};

TEST(TokenLoopTest, AsksTheConstraintBeforeAndTellsItAfterEachToken) {
  test::ScriptedSession session({7, 9}, 16);
  ForbidOne constraint(9, 16);
  const GeneratedTokens generated =
      generate_tokens(session, {.max_gen_len = 10, .constraint = &constraint});
  EXPECT_THAT(generated.ids, ElementsAre(7, 0)) << "the next best of the second step is id 0";
  EXPECT_THAT(constraint.accepted, ElementsAre(7, 0));
  EXPECT_THAT(constraint.budgets, ElementsAre(9, 8, 7));
}

// Forces the tokens of a plan; where the plan has kChoose the model may say 5 or 6.
class Plan : public Constraint {
 public:
  static constexpr TokenId kChoose = -1;
  explicit Plan(std::vector<TokenId> plan) : plan_(std::move(plan)), allowed_(16) {}
  const TokenSet* allowed(std::int64_t) override {
    allowed_.clear();
    if (at_ == plan_.size()) {
      allowed_.insert(kEosId);
    } else {
      allowed_.insert(5);
      allowed_.insert(6);
    }
    return &allowed_;
  }
  std::span<const TokenId> forced(std::int64_t) override {
    std::size_t end = at_;
    while (end < plan_.size() && plan_[end] != kChoose) {
      ++end;
    }
    return std::span(plan_).subspan(at_, end - at_);
  }
  void accept(TokenId) override { ++at_; }
  std::unique_ptr<Constraint> clone() const override { return std::make_unique<Plan>(*this); }

 private:
  std::vector<TokenId> plan_;
  std::size_t at_ = 0;
  TokenSet allowed_;
};

// Counts the passes, and poisons every logit that was not wanted.
class CountingSession : public test::ScriptedSession {
 public:
  using ScriptedSession::ScriptedSession;
  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet* wanted) override {
    passes.emplace_back(tokens.begin(), tokens.end());
    const auto all = ScriptedSession::feed(tokens, wanted);
    logits_.assign(all.begin(), all.end());
    for (std::size_t id = 0; id < logits_.size(); ++id) {
      if (wanted != nullptr && !wanted->contains(static_cast<TokenId>(id))) {
        logits_[id] = 1e9F;
      }
    }
    return logits_;
  }
  std::vector<std::vector<TokenId>> passes;

 private:
  std::vector<float> logits_;
};

TEST(TokenLoopTest, ForcedTokensGoToTheEngineInOnePass) {
  CountingSession session({9, 9, 9, 6, 9, 9, 5, 9}, 16);
  Plan plan({2, 3, 4, Plan::kChoose, 7, 8, Plan::kChoose, 10, 11});
  std::vector<TokenId> streamed;
  const GeneratedTokens generated =
      generate_tokens(session, {.constraint = &plan, .on_token = [&](TokenId id) {
                                  streamed.push_back(id);
                                  return true;
                                }});
  EXPECT_THAT(generated.ids, ElementsAre(2, 3, 4, 6, 7, 8, 5, 10, 11));
  EXPECT_EQ(streamed, generated.ids);
  EXPECT_EQ(generated.stop, StopReason::kEos);
  EXPECT_THAT(session.passes, ElementsAre(ElementsAre(kEosId, 2, 3, 4), ElementsAre(6, 7, 8)));
  EXPECT_EQ(generated.chosen_tokens, 2);
  EXPECT_EQ(generated.forced_tokens, 8) << "eos, the only token allowed at the end, is one";
}

TEST(TokenLoopTest, ForcedTokensKeepTheLength) {
  test::ScriptedSession session({}, 16);
  Plan plan({2, 3, 4, 7, 8});
  const GeneratedTokens generated =
      generate_tokens(session, {.max_gen_len = 4, .constraint = &plan});
  EXPECT_THAT(generated.ids, ElementsAre(2, 3, 4));
  EXPECT_EQ(generated.stop, StopReason::kMaxTokens);
}

TEST(TokenLoopTest, EveryDetailGivesTheSameTokens) {
  for (const StepDetail detail : {StepDetail::kNone, StepDetail::kConfidence, StepDetail::kTrace}) {
    CountingSession session({9, 9, 6, 9, 5}, 16);
    Plan plan({2, 3, Plan::kChoose, 7, Plan::kChoose});
    const GeneratedTokens generated =
        generate_tokens(session, {.constraint = &plan, .detail = detail, .alternatives = 2});
    EXPECT_THAT(generated.ids, ElementsAre(2, 3, 6, 7, 5));
    EXPECT_EQ(generated.steps.size(), detail == StepDetail::kNone ? 0U : 6U);
  }
}

TEST(TokenLoopTest, ProbabilitiesAreAmongTheAllowedTokens) {
  ConstantSession session({0, 0, 0, 0, 0, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0});
  Plan plan({Plan::kChoose});
  const GeneratedTokens generated = generate_tokens(
      session, {.constraint = &plan, .detail = StepDetail::kConfidence, .alternatives = 3});
  ASSERT_EQ(generated.steps.size(), 2U);
  const TokenStep& step = generated.steps[0];
  EXPECT_EQ(step.id, 5);
  EXPECT_EQ(step.allowed_tokens, 2);
  EXPECT_NEAR(std::exp(step.log_probability), 1 / (1 + std::exp(-1.0)), 1e-12);
  EXPECT_FALSE(step.outside.has_value()) << "the other logits were not computed";
  ASSERT_EQ(step.alternatives.size(), 1U);
  EXPECT_EQ(step.alternatives[0].id, 6);
  EXPECT_NEAR(std::exp(step.log_probability) + std::exp(step.alternatives[0].log_probability), 1,
              1e-12);
  EXPECT_TRUE(generated.steps[1].forced);
  EXPECT_EQ(generated.steps[1].log_probability, 0);
}

TEST(TokenLoopTest, ATraceTellsWhatTheMaskCutOff) {
  ConstantSession session({0, 0, 0, 0, 0, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0});
  Plan plan({2, Plan::kChoose});
  const GeneratedTokens generated = generate_tokens(
      session, {.constraint = &plan, .detail = StepDetail::kTrace, .alternatives = 2});
  ASSERT_EQ(generated.steps.size(), 3U);
  const double total = 13 + std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  EXPECT_NEAR(generated.steps[0].outside.value(), 1 - 1 / total, 1e-9) << "forced";
  const TokenStep& step = generated.steps[1];
  EXPECT_NEAR(step.outside.value(), 1 - (std::exp(1.0) + std::exp(2.0)) / total, 1e-9);
  EXPECT_NEAR(std::exp(step.log_probability), 1 / (1 + std::exp(-1.0)), 1e-9);
  ASSERT_EQ(step.alternatives.size(), 2U);
  EXPECT_EQ(step.alternatives[0].id, 7);
  EXPECT_FALSE(step.alternatives[0].allowed);
  EXPECT_TRUE(step.alternatives[1].allowed);
}

TEST(TokenLoopTest, WatchesAnotherAnswer) {
  const std::vector<TokenId> other = {2, 6};
  const std::vector<TokenId> same = {2, 5};
  const std::vector<TokenId> impossible = {3};
  const auto watched = [](const std::vector<TokenId>& ids) {
    ConstantSession session({0, 0, 0, 0, 0, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0});
    Plan plan({2, Plan::kChoose});
    return std::exp(
        generate_tokens(session,
                        {.constraint = &plan, .detail = StepDetail::kConfidence, .watched = ids})
            .watched_log_probability);
  };
  EXPECT_NEAR(watched(other), 1 / (1 + std::exp(1.0)), 1e-12);
  EXPECT_NEAR(watched(same), 1 / (1 + std::exp(-1.0)), 1e-12);
  EXPECT_EQ(watched(impossible), 0);
}

TEST(TokenLoopTest, GoesOnFromAPrefix) {
  CountingSession session({9, 9, 6, 9, 5}, 16);
  const std::vector<TokenId> prefix = {2, 3, 5};
  session.feed(std::vector<TokenId>{kEosId, 2}, nullptr);
  session.passes.clear();
  Plan plan({2, 3, Plan::kChoose, 7, Plan::kChoose});
  const GeneratedTokens generated =
      generate_tokens(session, {.constraint = &plan, .prefix = prefix});
  EXPECT_THAT(generated.ids, ElementsAre(2, 3, 5, 7, 5));
  EXPECT_THAT(session.passes, ElementsAre(ElementsAre(3, 5, 7)));
  session.rewind(0);
  session.feed(std::vector<TokenId>{kEosId, 2, 3, 5}, nullptr);
  EXPECT_THROW(generate_tokens(session, {.prefix = prefix}), Error);
}

TEST(TokenLoopTest, AConstraintThatAllowsNothingIsAnError) {
  const TokenSet nothing(4);
  EXPECT_THROW(best_token(std::vector<float>{1, 2, 3, 4}, &nothing), Error);
}

}  // namespace
}  // namespace needle
