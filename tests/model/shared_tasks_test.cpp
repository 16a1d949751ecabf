#include "needle/model/shared_tasks.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace needle {
namespace {

class SharedTasksTest : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(2); }
  void TearDown() override { at::set_num_threads(before_); }

 private:
  int before_ = at::get_num_threads();
};

TEST_F(SharedTasksTest, EveryTaskIsDoneOnce) {
  for (const std::int64_t count : {0, 1, 2, 97}) {
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
    share_tasks(count, [&](std::int64_t task) { ++done[static_cast<std::size_t>(task)]; });
    for (const auto& times : done) {
      EXPECT_EQ(times, 1) << "of " << count << " tasks";
    }
  }
}

TEST_F(SharedTasksTest, AThreadThatIsHeldUpLeavesTheRestToTheOther) {
  constexpr std::int64_t kTasks = 16;
  std::atomic<std::int64_t> done{0};
  std::int64_t others = 0;
  share_tasks(kTasks, [&](std::int64_t task) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (task == 0 && done < kTasks - 1 && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
    if (task == 0) {
      others = done;
    }
    ++done;
  });
  EXPECT_EQ(others, kTasks - 1);  // equal shares would leave half of them to the first thread
}

TEST_F(SharedTasksTest, AnExceptionReachesTheCaller) {
  EXPECT_THROW(share_tasks(8,
                           [](std::int64_t task) {
                             if (task == 5) {
                               throw std::runtime_error("five");
                             }
                           }),
               std::runtime_error);
}

}  // namespace
}  // namespace needle
