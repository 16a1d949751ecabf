#include "needle/core/lru_cache.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace needle {
namespace {

class LruCacheTest : public ::testing::Test {
 protected:
  // How often values were made so far, after one more question.
  template <typename Cache>
  int made_after(Cache& cache, const std::string& key) {
    EXPECT_EQ(*cache.find_or_make(key,
                                  [&] {
                                    ++made_;
                                    return std::make_shared<const std::string>("of " + key);
                                  }),
              "of " + key);
    return made_;
  }
  int made_ = 0;
};

TEST_F(LruCacheTest, TheLeastRecentlyUsedGoesFirst) {
  LruCache<std::string> cache(2);
  EXPECT_EQ(made_after(cache, "a"), 1);
  EXPECT_EQ(made_after(cache, "b"), 2);
  EXPECT_EQ(made_after(cache, "a"), 2);
  EXPECT_EQ(made_after(cache, "c"), 3);  // for which b goes
  EXPECT_EQ(made_after(cache, "a"), 3);
  EXPECT_EQ(made_after(cache, "b"), 4);
  EXPECT_EQ(cache.size(), 2U);
}

TEST_F(LruCacheTest, KeysTogetherStayWithinTheirBytes) {
  LruCache<std::string> cache(100, 10);
  made_after(cache, "12345");
  made_after(cache, "6789");
  EXPECT_EQ(cache.size(), 2U);
  made_after(cache, "ab");  // for which the first goes
  EXPECT_EQ(cache.size(), 2U);
  EXPECT_EQ(made_after(cache, "6789"), 3);
  EXPECT_EQ(made_after(cache, "longer than all"), 4);
  EXPECT_EQ(made_after(cache, "longer than all"), 5);  // not kept, and nothing went for it
  EXPECT_EQ(made_after(cache, "6789"), 5);
}

TEST_F(LruCacheTest, AnErrorIsNotKept) {
  LruCache<std::string> cache(2);
  EXPECT_THROW(
      cache.find_or_make(
          "a", []() -> std::shared_ptr<const std::string> { throw std::runtime_error("no"); }),
      std::runtime_error);
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(made_after(cache, "a"), 1);
}

TEST_F(LruCacheTest, ServesSeveralThreads) {
  LruCache<int> cache(8);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        const int value = (i * (t + 1)) % 12;
        wrong += *cache.find_or_make(std::to_string(value),
                                     [&] { return std::make_shared<const int>(value); }) != value;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(cache.size(), 8U);
}

}  // namespace
}  // namespace needle
