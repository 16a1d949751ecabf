#include "needle/eval/stratify.h"

#include <algorithm>
#include <map>
#include <string>

#include <gtest/gtest.h>

namespace needle {
namespace {

EvalCase make_case(int calls, int tools) {
  const auto array = [](int items) {
    std::string text = "[";
    for (int i = 0; i < items; ++i) {
      text += i == 0 ? "{}" : ",{}";
    }
    return text + "]";
  };
  return {.query = "q", .tools = array(tools), .answers = array(calls)};
}

TEST(StratifyTest, BucketsByCallsAndTools) {
  EXPECT_EQ(bucket_of(make_case(0, 0)), (Bucket{CallPool::kNone, 0}));
  EXPECT_EQ(bucket_of(make_case(1, 3)), (Bucket{CallPool::kSingle, 3}));
  EXPECT_EQ(bucket_of(make_case(2, 10)), (Bucket{CallPool::kMulti, 10}));
  EXPECT_EQ(bucket_of(make_case(5, 40)), (Bucket{CallPool::kMulti, kMostToolsBucket}));
}

TEST(StratifyTest, SamplesEveryBucketEvenly) {
  std::vector<EvalCase> cases;
  for (int i = 0; i < 100; ++i) {
    cases.push_back(make_case(1, 2));
  }
  for (int i = 0; i < 3; ++i) {
    cases.push_back(make_case(2, 5));
  }
  const auto sample = stratified_sample(cases, 10, 42);
  EXPECT_EQ(sample.size(), 13U);
  EXPECT_TRUE(std::is_sorted(sample.begin(), sample.end()));
  EXPECT_EQ(std::adjacent_find(sample.begin(), sample.end()), sample.end()) << "no case twice";
  EXPECT_EQ(std::count_if(sample.begin(), sample.end(), [](std::size_t i) { return i >= 100; }), 3);
  EXPECT_EQ(sample, stratified_sample(cases, 10, 42));
  EXPECT_NE(sample, stratified_sample(cases, 10, 43));
  EXPECT_EQ(stratified_sample(cases, 1000, 1).size(), cases.size());
  EXPECT_TRUE(stratified_sample({}, 10, 1).empty());
}

}  // namespace
}  // namespace needle
