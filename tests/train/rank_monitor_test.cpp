#include "needle/train/rank_monitor.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace needle {
namespace {

using testing::HasSubstr;

// One process's memory instead of a store.
struct SharedBoard {
  std::mutex mutex;
  std::map<std::string, std::string> texts;
  std::atomic<bool> gone{false};
};

class TestBoard : public RankBoard {
 public:
  TestBoard(SharedBoard& shared, std::atomic<bool>& frozen) : shared_(shared), frozen_(frozen) {}
  void post(const std::string& key, const std::string& text) override {
    while (frozen_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    if (shared_.gone) {
      throw std::runtime_error("connection reset");
    }
    const std::lock_guard lock(shared_.mutex);
    shared_.texts[key] = text;
  }
  std::vector<std::string> read(const std::vector<std::string>& keys) override {
    const std::lock_guard lock(shared_.mutex);
    std::vector<std::string> texts;
    for (const std::string& key : keys) {
      texts.push_back(shared_.texts[key]);
    }
    return texts;
  }

 private:
  SharedBoard& shared_;
  std::atomic<bool>& frozen_;
};

class RankMonitorTest : public testing::Test {
 protected:
  std::unique_ptr<RankMonitor> start(std::int64_t rank, RankMonitorOptions options = {}) {
    options.beat_s = 0.02;
    options.silence_s = 0.5;
    return std::make_unique<RankMonitor>(std::make_unique<TestBoard>(board_, frozen_[rank]), rank,
                                         2, options);
  }
  SharedBoard board_;
  std::atomic<bool> frozen_[2] = {false, false};
};

TEST_F(RankMonitorTest, NothingIsWrongWhileAllLiveAndEnd) {
  auto first = start(0);
  auto second = start(1);
  EXPECT_EQ(first->diagnose(0.8), std::nullopt);
  second->post_end();
  EXPECT_TRUE(first->others_ended(2.0));
  second.reset();
  EXPECT_EQ(first->diagnose(0.8), std::nullopt);  // its silence is no failure
}

TEST_F(RankMonitorTest, ASilentRankIsNamed) {
  const auto first = start(0);
  const auto second = start(1);
  EXPECT_EQ(first->diagnose(0.3), std::nullopt);
  frozen_[1] = true;
  const auto failure = first->diagnose(5.0);
  frozen_[1] = false;
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(*failure, HasSubstr("rank 1 (pid "));
  EXPECT_THAT(*failure, HasSubstr("no sign of life"));
}

TEST_F(RankMonitorTest, ARankThatStaysBehindIsNamed) {
  const auto first = start(0, {.progress_s = 0.4});
  const auto second = start(1, {.progress_s = 0.4});
  first->passed_collective();
  first->passed_collective();
  second->passed_collective();
  const auto failure = first->diagnose(5.0);
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(*failure, HasSubstr("rank 1 (pid "));
  EXPECT_THAT(*failure, HasSubstr("hangs: alive, but 1 collective"));
  EXPECT_EQ(second->failure(), std::nullopt);  // the first one is ahead
}

TEST_F(RankMonitorTest, TheReasonOfAFailureIsPassedOn) {
  const auto first = start(0);
  const auto second = start(1);
  second->post_failure("the disk is full");
  const auto failure = first->diagnose(5.0);
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(*failure, HasSubstr("stopped: the disk is full"));
}

TEST_F(RankMonitorTest, ABoardThatIsGoneIsRankZerosFault) {
  const auto second = start(1);
  board_.gone = true;
  const auto failure = second->diagnose(5.0);
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(*failure, HasSubstr("rank 0"));
  EXPECT_THAT(*failure, HasSubstr("connection reset"));
}

TEST_F(RankMonitorTest, ABoardThatDoesNotAnswerIsNamed) {
  const auto second = start(1);
  EXPECT_EQ(second->diagnose(0.2), std::nullopt);
  frozen_[1] = true;  // its own post blocks
  const auto failure = second->diagnose(5.0);
  frozen_[1] = false;
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(*failure, HasSubstr("has not answered"));
}

// As a scheduler suspends a whole job: longer than silence_s, and no rank was silent.
TEST_F(RankMonitorTest, StoppedTogetherTheyGoOn) {
  const pid_t pid = fork();
  if (pid == 0) {
    const auto first = start(0, {.progress_s = 0.8});
    const auto second = start(1, {.progress_s = 0.8});
    first->passed_collective();
    const bool before = first->diagnose(0.3).has_value();
    raise(SIGSTOP);
    const bool after = first->diagnose(0.2).has_value() || second->failure().has_value();
    frozen_[1] = true;  // a silent one is still found
    const bool silent = first->diagnose(5.0).has_value();
    frozen_[1] = false;
    _exit((before ? 1 : 0) + (after ? 2 : 0) + (silent ? 0 : 4));
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status));
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  kill(pid, SIGCONT);
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(RankMonitorTest, ASlowRankIsToldOnce) {
  std::mutex mutex;
  std::vector<std::string> told;
  const auto first = start(0, {.slow_beats = 3, .on_slow = [&](const std::string& text) {
                                 const std::lock_guard lock(mutex);
                                 told.push_back(text);
                               }});
  const auto second = start(1);
  first->worked(0.100);
  second->worked(0.200);
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  const std::lock_guard lock(mutex);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_THAT(told[0], HasSubstr("rank 1"));
  EXPECT_THAT(told[0], HasSubstr("is slow: 200 ms"));
}

}  // namespace
}  // namespace needle
