#include "needle/core/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace needle {
namespace {

TEST(ErrorTest, CheckTellsPlaceConditionAndValues) {
  const int heads = 3;
  try {
    NEEDLE_CHECK(heads == 4, "heads is {}", heads);
    FAIL() << "did not throw";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("error_test.cpp"));
    EXPECT_THAT(error.what(), testing::HasSubstr("heads == 4"));
    EXPECT_THAT(error.what(), testing::HasSubstr("heads is 3"));
  }
}

TEST(ErrorTest, CheckThatHoldsEvaluatesNoMessage) {
  int evaluated = 0;
  NEEDLE_CHECK(true, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

}  // namespace
}  // namespace needle
