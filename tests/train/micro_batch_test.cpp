#include "needle/train/micro_batch.h"

#include <new>
#include <stdexcept>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/error.h"

#include "tests/train/tiny_run.h"

namespace needle {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Batch empty_batch(std::int64_t rows) { return {.rows = rows, .enc_len = 40, .dec_len = 20}; }

TEST(MicroBatchTest, KnowsWhenMemoryRanOut) {
  EXPECT_TRUE(is_out_of_memory(std::bad_alloc()));
  EXPECT_FALSE(is_out_of_memory(std::runtime_error("the loss is nan")));
  bool refused = false;
  try {
    torch::empty({std::int64_t{1} << 46});  // 256 TB
  } catch (const std::exception& error) {
    refused = true;
    EXPECT_TRUE(is_out_of_memory(error)) << error.what();
  }
  EXPECT_TRUE(refused);
  try {
    torch::ones({2, 3}).mm(torch::ones({2, 3}));
  } catch (const std::exception& error) {
    EXPECT_FALSE(is_out_of_memory(error)) << error.what();
  }
}

TEST(MicroBatchTest, HalvesUntilItFits) {
  std::vector<std::int64_t> tried;
  const auto fits = [&tried](std::int64_t most) {
    return [&tried, most](const Batch& batch) {
      tried.push_back(batch.rows);
      if (batch.rows > most) {
        throw std::bad_alloc();
      }
    };
  };
  EXPECT_EQ(largest_that_fits(12, empty_batch, fits(12)), 12);
  EXPECT_THAT(tried, ElementsAre(12));
  tried.clear();
  EXPECT_EQ(largest_that_fits(12, empty_batch, fits(2)), 2);
  EXPECT_THAT(tried, ElementsAre(12, 6, 3, 2));
  const std::string message =
      test::message_of<Error>([&] { largest_that_fits(4, empty_batch, fits(0)); });
  EXPECT_THAT(message, HasSubstr("1 rows of 40 + 20 tokens does not fit"));
  EXPECT_THAT(message, HasSubstr("max_enc_len"));
  EXPECT_THROW(largest_that_fits(4, empty_batch,
                                 [](const Batch&) { throw std::runtime_error("something else"); }),
               std::runtime_error);
}

TEST(MicroBatchTest, TheAdviceNamesTheNextSize) {
  EXPECT_THAT(out_of_memory_advice(9, empty_batch(9), "std::bad_alloc\nat 0x1"),
              testing::AllOf(HasSubstr("9 rows of 40 + 20 tokens does not fit (std::bad_alloc)"),
                             HasSubstr("train.micro_batch=5")));
}

}  // namespace
}  // namespace needle
