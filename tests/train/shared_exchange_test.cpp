#include "needle/train/shared_exchange.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/random.h"
#include "needle/train/gradient_sums.h"
#include "needle/train/task_board.h"

#include "tests/support/golden.h"
#include "tests/train/rank_processes.h"

namespace needle {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// Notices as files of a folder.
SharedNotices notices_in(const std::filesystem::path& folder) {
  const auto path_of = [folder](std::string key) {
    std::replace(key.begin(), key.end(), '/', '_');
    return folder / key;
  };
  return {.post = [=](const std::string& key,
                      const std::string& text) { write_file_atomic(path_of(key), text); },
          .await =
              [=](const std::string& key) {
                const auto start = std::chrono::steady_clock::now();
                while (!std::filesystem::exists(path_of(key))) {
                  if (std::chrono::steady_clock::now() - start > std::chrono::seconds(20)) {
                    throw Error("nobody posts " + key);
                  }
                  std::this_thread::sleep_for(milliseconds(1));
                }
                return read_file(path_of(key));
              }};
}

// Patient for half a minute.
SharedWatch watch() {
  auto looks = std::make_shared<int>(0);
  return {.passed_collective = [] {},
          .look_up =
              [looks] {
                if (++*looks > 150) {
                  throw Error("waited too long");
                }
              }};
}

std::unique_ptr<SharedExchange> join(const std::filesystem::path& folder, std::int64_t rank,
                                     std::int64_t world) {
  std::string reason;
  auto exchange = SharedExchange::join(rank, world, "", notices_in(folder), watch(), reason);
  if (exchange == nullptr) {
    throw Error(reason);
  }
  return exchange;
}

std::string maps() {
  std::ifstream file("/proc/self/maps");
  return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    (void)entry;
    ++count;
  }
  return count;
}

TEST(SharedCountTest, AWaiterSeesWhatWasWrittenBefore) {
  auto count = std::make_unique<SharedCount>();
  auto back = std::make_unique<SharedCount>();
  constexpr std::uint32_t kRounds = 2000;
  std::uint64_t written = 0;
  std::thread other([&] {
    for (std::uint32_t i = 1; i <= kRounds; ++i) {
      ASSERT_TRUE(count->wait_for(i, milliseconds(20000)));
      ASSERT_EQ(written, i);
      back->raise();
    }
  });
  for (std::uint32_t i = 1; i <= kRounds; ++i) {
    if (i % 100 == 0) {
      std::this_thread::sleep_for(milliseconds(1));  // the other one falls asleep
    }
    written = i;
    count->raise();
    ASSERT_TRUE(back->wait_for(i, milliseconds(20000)));
  }
  other.join();
  EXPECT_EQ(count->sleepers.load(), 0U);
}

TEST(SharedCountTest, WaitingEndsAndNumbersWrapAround) {
  auto count = std::make_unique<SharedCount>();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(count->wait_for(1, milliseconds(30)));
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(30));
  count->value.store(std::numeric_limits<std::uint32_t>::max());
  EXPECT_FALSE(count->has_reached(0));  // one more than the largest
  count->raise();
  EXPECT_TRUE(count->wait_for(0, milliseconds(0)));
  EXPECT_TRUE(count->has_reached(std::numeric_limits<std::uint32_t>::max()));
}

TEST(SharedMemoryTest, EveryProcessSeesAllPartsAndNothingIsLeft) {
  const test::TemporaryFolder folder;
  test::expect_good(test::as_processes(3, [&](std::int64_t rank) {
    const std::size_t descriptors = open_descriptors();
    std::string reason;
    auto memory = SharedMemory::map({.key = "one",
                                     .rank = rank,
                                     .world = 3,
                                     .bytes = 5000 + 10000 * static_cast<std::size_t>(rank),
                                     .refusal = {}},
                                    notices_in(folder.path()), reason);
    ASSERT_NE(memory, nullptr) << reason;
    EXPECT_EQ(open_descriptors(), descriptors);
    EXPECT_THAT(maps(), HasSubstr("memfd:needle-"));
    const auto own = memory->part(rank);
    ASSERT_EQ(own.size(), 5000U + 10000U * static_cast<std::size_t>(rank));
    own.back() = std::byte(10 + rank);
    const auto count = [&](std::int64_t other) {
      return reinterpret_cast<SharedCount*>(memory->part(other).data());
    };
    count(rank)->raise();
    for (std::int64_t other = 0; other < 3; ++other) {
      ASSERT_TRUE(count(other)->wait_for(1, milliseconds(20000)));
      EXPECT_EQ(memory->part(other).back(), std::byte(10 + other));
    }
    memory.reset();
    EXPECT_THAT(maps(), testing::Not(HasSubstr("memfd:needle-")));
  }));
}

TEST(SharedMemoryTest, WhatOneCannotNobodyDoes) {
  const test::TemporaryFolder folder;
  test::expect_good(test::as_processes(3, [&](std::int64_t rank) {
    if (rank == 1) {  // as where files may not be large
      const rlimit limit{.rlim_cur = 4096, .rlim_max = 4096};
      ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    }
    std::string reason;
    EXPECT_EQ(
        SharedMemory::map({.key = "one", .rank = rank, .world = 3, .bytes = 1 << 20, .refusal = {}},
                          notices_in(folder.path()), reason),
        nullptr);
    EXPECT_THAT(reason, testing::StartsWith("rank 1: "));
    EXPECT_THAT(reason, HasSubstr("ulimit -f"));
    EXPECT_EQ(SharedMemory::map({.key = "two",
                                 .rank = rank,
                                 .world = 3,
                                 .bytes = 100,
                                 .refusal = rank == 2 ? "has no wish" : ""},
                                notices_in(folder.path()), reason),
              nullptr);
    EXPECT_EQ(reason, "rank 2: has no wish");
    EXPECT_THAT(maps(), testing::Not(HasSubstr("memfd:needle-")));
  }));
}

TEST(SharedMemoryTest, AnotherProcesssFilesAreNotTaken) {
  const int file = memfd_create("needle-other", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, 4096), 0);
  int number = 0;
  // What another host's rank may say: that process or descriptor is none, or another one, here.
  for (const auto& [offer, what] : std::vector<std::pair<std::string, std::string>>{
           {format("{} {} 4096 needle-its", getpid(), file), "another host or container"},
           {format("{} {} 8192 needle-other", getpid(), file), "has 4096 bytes, not 8192"},
           {format("{} 0 4096 needle-its", getpid()), "another host or container"},
           {"2147483600 5 4096 needle-its", "No such file"}}) {
    const test::TemporaryFolder folder;
    const auto notices = notices_in(folder.path());
    const std::string key = std::to_string(++number);
    notices.post(key + "/memory/1", offer);
    notices.post(key + "/mapped/1", "yes");
    std::string reason;
    EXPECT_EQ(SharedMemory::map({.key = key, .rank = 0, .world = 2, .bytes = 4096, .refusal = {}},
                                notices, reason),
              nullptr);
    EXPECT_THAT(reason, testing::StartsWith("rank 0: /proc/"));
    EXPECT_THAT(reason, HasSubstr(what));
  }
  close(file);
}

float number_of(std::int64_t rank, std::size_t i) {
  return static_cast<float>(rank + 1) * 0.1F + static_cast<float>(i % 1000) * 1e-7F +
         (rank == 1 ? 3e6F : 0.0F);  // so large that the order of adding shows
}

TEST(SharedExchangeTest, SumsAreTakenInTheOrderOfRanks) {
  for (const std::int64_t world : {2, 3, 4}) {
    const test::TemporaryFolder folder;
    test::expect_good(test::as_processes(world, [&](std::int64_t rank) {
      const auto exchange = join(folder.path(), rank, world);
      for (const std::size_t size : {0, 1, 7, 65536, 65537, 200001}) {
        std::vector<float> numbers(size);
        std::vector<double> doubles(size);
        std::vector<std::int64_t> integers(size);
        for (std::size_t i = 0; i < size; ++i) {
          numbers[i] = number_of(rank, i);
          doubles[i] = 1e-3 * static_cast<double>(i) + static_cast<double>(rank);
          integers[i] = static_cast<std::int64_t>(i) - 5 * rank;
        }
        exchange->sum(std::span(numbers));
        exchange->sum(std::span(doubles));
        exchange->sum(std::span(integers));
        for (std::size_t i = 0; i < size; ++i) {
          float sum = number_of(0, i);
          double double_sum = 1e-3 * static_cast<double>(i);
          std::int64_t integer_sum = static_cast<std::int64_t>(i);
          for (std::int64_t other = 1; other < world; ++other) {
            sum += number_of(other, i);
            double_sum += 1e-3 * static_cast<double>(i) + static_cast<double>(other);
            integer_sum += static_cast<std::int64_t>(i) - 5 * other;
          }
          ASSERT_EQ(numbers[i], sum) << i;
          ASSERT_EQ(doubles[i], double_sum) << i;
          ASSERT_EQ(integers[i], integer_sum) << i;
        }
      }
    }));
  }
}

// Slots and events are used again and again, and ranks are fast and slow in turn.
TEST(SharedExchangeTest, NobodyOvertakes) {
  const test::TemporaryFolder folder;
  constexpr std::int64_t kWorld = 4;
  constexpr int kRounds = 300;
  test::expect_good(test::as_processes(kWorld, [&](std::int64_t rank) {
    const auto exchange = join(folder.path(), rank, kWorld);
    Random random(static_cast<std::uint64_t>(rank) + 1);
    std::string reason;
    const auto memory = exchange->share(64 * static_cast<std::size_t>(rank + 1), reason);
    ASSERT_NE(memory, nullptr) << reason;
    const auto cell = [&](std::int64_t other) {
      return reinterpret_cast<std::int64_t*>(memory->part(other).data());
    };
    for (int round = 0; round < kRounds; ++round) {
      if (random.below(8) == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random.below(600)));
      }
      const std::int64_t root = round % kWorld;
      std::vector<std::int64_t> text(40000, rank == root ? round : -1);  // more than a slot
      for (int again = 0; again < 2; ++again) {
        exchange->broadcast(std::as_writable_bytes(std::span(text)), root);
        ASSERT_EQ(text, std::vector<std::int64_t>(40000, round));
      }
      *cell(rank) = 1000 * round + rank;
      exchange->announce(SharedExchange::Event::kGradients);
      for (std::int64_t other = 0; other < kWorld; ++other) {
        exchange->await(other, SharedExchange::Event::kGradients,
                        static_cast<std::uint32_t>(round) + 1);
        ASSERT_EQ(*cell(other), 1000 * round + other);
      }
      std::vector<std::int64_t> sum{round, rank};
      exchange->sum(std::span(sum));  // and with it all have read
      ASSERT_EQ(sum, (std::vector<std::int64_t>{kWorld * round, kWorld * (kWorld - 1) / 2}));
    }
    EXPECT_EQ(exchange->announced(SharedExchange::Event::kGradients),
              static_cast<std::uint32_t>(kRounds));
  }));
}

TEST(SharedExchangeTest, AKilledRankKeepsNobodyWaiting) {
  const test::TemporaryFolder folder;
  const auto statuses = test::as_processes(3, [&](std::int64_t rank) {
    int looks = 0;
    double waited = 0.0;
    std::string reason;
    const auto exchange =
        SharedExchange::join(rank, 3, "", notices_in(folder.path()),
                             {.passed_collective = [] {},
                              .look_up =
                                  [&] {
                                    if (++looks == 3) {
                                      throw Error("rank 1 is gone");
                                    }
                                  },
                              .waited = [&](double seconds) { waited += seconds; }},
                             reason);
    ASSERT_NE(exchange, nullptr) << reason;
    std::vector<double> numbers{1.0};
    exchange->sum(std::span(numbers));
    if (rank == 1) {
      raise(SIGKILL);
    }
    try {
      exchange->sum(std::span(numbers));
      ADD_FAILURE() << "rank 1 still added " << numbers[0];
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "rank 1 is gone");
    }
    EXPECT_LT(waited, 5.0);
  });
  EXPECT_EQ(statuses, (std::vector<int>{0, -SIGKILL, 0}));
}

// A rank that is slow has its tasks done by others, each once, and sees what they wrote.
TEST(TaskBoardTest, TheFastDoWhatTheSlowHaveNotBegun) {
  const test::TemporaryFolder folder;
  constexpr std::int64_t kWorld = 3;
  constexpr std::uint32_t kRounds = 20;
  const std::vector<std::size_t> tasks{40, 0, 7};
  test::expect_good(test::as_processes(kWorld, [&](std::int64_t rank) {
    const auto exchange = join(folder.path(), rank, kWorld);
    std::string reason;
    const std::size_t own = tasks[static_cast<std::size_t>(rank)];
    const auto memory = exchange->share(4096 + 1024, reason);
    ASSERT_NE(memory, nullptr) << reason;
    ASSERT_LE(TaskBoard::bytes(own), 1024U);
    std::vector<std::span<std::byte>> boards;
    for (std::int64_t other = 0; other < kWorld; ++other) {
      boards.push_back(memory->part(other).subspan(4096));
    }
    const auto cells = [&](std::int64_t owner) {
      return reinterpret_cast<std::int64_t*>(memory->part(owner).data());
    };
    TaskBoard board(*exchange, rank, boards, tasks);
    for (std::uint32_t round = 1; round <= kRounds; ++round) {
      board.run(
          round, [&](std::int64_t, std::size_t task) { return task % 5 != round % 5; },
          [&](std::int64_t owner, std::size_t task) {
            std::this_thread::sleep_for(milliseconds(rank == 0 ? 2 : 0));
            ++cells(owner)[task];  // twice would be too many
          });
      for (std::size_t task = 0; task < own; ++task) {
        const auto skipped = (round + 5 - task % 5) / 5;  // rounds up to this one
        ASSERT_EQ(cells(rank)[task], static_cast<std::int64_t>(round - skipped + (task % 5 == 0)))
            << round << ' ' << task;
      }
      std::vector<std::int64_t> nothing{0};
      exchange->sum(std::span(nothing));
    }
    std::vector<std::int64_t> done{rank == 0 ? 0 : board.done_for_others()};
    exchange->sum(std::span(done));
    EXPECT_GT(done[0], 100);  // of 640
  }));
}

TEST(GradientSumsTest, SumsAreThoseOfTheirParts) {
  Random random(3);
  for (const std::size_t size : {0, 1, 31, 33, 2048, 2049, 100003}) {
    std::vector<std::vector<float>> parts(3, std::vector<float>(size + 1));
    for (auto& part : parts) {
      for (float& value : part) {
        value = static_cast<float>(random.normal());
      }
    }
    double squares = 0.0;
    double sum = 0.0;
    std::vector<float> expected(size);
    for (std::size_t i = 0; i < size; ++i) {
      expected[i] = (parts[0][i + 1] + parts[1][i + 1]) + parts[2][i + 1];
      squares += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
      sum += static_cast<double>(parts[1][i + 1]);
    }
    std::vector<float> copy(size, -1.0F);
    const float copied = copy_and_sum(std::span(parts[1]).subspan(1), copy.data());
    EXPECT_NEAR(copied, sum, 1e-6 * 32.0 * static_cast<double>(size));
    EXPECT_TRUE(std::equal(copy.begin(), copy.end(), parts[1].begin() + 1));
    const std::vector<const float*> pointers{&parts[0][1], &parts[1][1], &parts[2][1]};
    const std::span<float> target(&parts[1][1], size);  // into one of them
    const double measured = add_up(pointers, target);
    EXPECT_NEAR(measured, squares, 1e-5 * squares);
    EXPECT_TRUE(std::equal(target.begin(), target.end(), expected.begin()));
    // What is added to nothing stays, and the sum of its squares is the same to the last bit.
    const std::vector<const float*> itself{target.data()};
    EXPECT_EQ(add_up(itself, target), measured);
  }
  std::vector<float> bad(100, 1.0F);
  bad[37] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> copy(100);
  EXPECT_FALSE(std::isfinite(copy_and_sum(bad, copy.data())));
}

}  // namespace
}  // namespace needle
