#include "needle/train/device_batch.h"

#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle::test {
namespace {

Batch packed_batch() {
  return {.rows = 2,
          .enc_len = 3,
          .dec_len = 4,
          .source = {7, 8, 9, 10, 11, 0},
          .decoder_in = {1, 4, 5, 6, 1, 4, 0, 0},
          .target = {4, 5, 6, 1, 4, 1, 0, 0},
          .classes = {0, 1, 2, 3, 0, 2, 0, 0},
          .source_segments = {1, 1, 2, 1, 1, 0},
          .decoder_segments = {1, 1, 2, 2, 1, 1, 0, 0}};
}

TEST(DeviceBatchTest, KeepsEveryValueAndLooksWeightsUp) {
  const ClassWeights weights{.structure = 1.0, .name = 2.0, .value = 4.0, .key = 1.5};
  const DeviceBatch batch = to_device(packed_batch(), torch::kCPU, 12, &weights);
  EXPECT_TRUE(torch::equal(batch.input.source, torch::tensor({{7, 8, 9}, {10, 11, 0}})));
  EXPECT_TRUE(torch::equal(batch.input.decoder_in, torch::tensor({{1, 4, 5, 6}, {1, 4, 0, 0}})));
  EXPECT_TRUE(torch::equal(batch.target, torch::tensor({{4, 5, 6, 1}, {4, 1, 0, 0}})));
  EXPECT_TRUE(torch::equal(batch.input.source_segments, torch::tensor({{1, 1, 2}, {1, 1, 0}})));
  EXPECT_TRUE(
      torch::equal(batch.input.decoder_segments, torch::tensor({{1, 1, 2, 2}, {1, 1, 0, 0}})));
  EXPECT_TRUE(torch::equal(batch.weights,
                           torch::tensor({{1.0f, 2.0f, 4.0f, 1.5f}, {1.0f, 4.0f, 1.0f, 1.0f}})));
  EXPECT_TRUE(batch.input.mask_decoder_padding);
}

TEST(DeviceBatchTest, SegmentsAreCountedWhereTheyAreNumberedInOrder) {
  const auto most = [](const Batch& batch) {
    return to_device(batch, torch::kCPU, 12, nullptr).input.most_segments;
  };
  Batch batch = packed_batch();
  EXPECT_EQ(most(batch), 8);
  batch.decoder_segments[3] = 9;
  EXPECT_EQ(most(batch), 16);
  batch.decoder_segments[3] = 1;  // 1 1 2 1
  EXPECT_EQ(most(batch), 0);
  batch.decoder_segments = {1, 1, 2, 2, 1, 0, 1, 0};
  EXPECT_EQ(most(batch), 0);
  batch.decoder_segments = {1, 1, 2, 2, 2, 1, 0, 0};
  EXPECT_EQ(most(batch), 0);
}

TEST(DeviceBatchTest, LeavesOutWhatTheBatchDoesNotHave) {
  Batch plain = packed_batch();
  plain.classes.clear();
  plain.source_segments.clear();
  plain.decoder_segments.clear();
  const ClassWeights weights;
  const DeviceBatch batch = to_device(plain, torch::kCPU, 12, &weights);
  EXPECT_FALSE(batch.weights.defined());
  EXPECT_FALSE(batch.input.source_segments.defined());
  EXPECT_FALSE(to_device(packed_batch(), torch::kCPU, 12, nullptr).weights.defined());
}

TEST(DeviceBatchTest, RefusesIdsThatTheEmbeddingLacks) {
  try {
    to_device(packed_batch(), torch::kCPU, 11, nullptr);
    ADD_FAILURE() << "id 11 of a vocabulary of 11 was accepted";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("source: row 1, position 1: 11"), std::string::npos)
        << error.what();
  }
  Batch negative = packed_batch();
  negative.target[2] = -1;
  EXPECT_THROW(to_device(negative, torch::kCPU, 12, nullptr), DataError);
  Batch bad_class = packed_batch();
  bad_class.classes[0] = 4;
  const ClassWeights weights;
  EXPECT_THROW(to_device(bad_class, torch::kCPU, 12, &weights), DataError);
}

TEST(DeviceBatchTest, RefusesArraysOfAnotherLength) {
  const ClassWeights weights;
  for (const auto damage :
       {+[](Batch& b) { b.source.pop_back(); }, +[](Batch& b) { b.target.push_back(0); },
        +[](Batch& b) { b.classes.pop_back(); }, +[](Batch& b) { b.source_segments.clear(); },
        +[](Batch& b) { b.rows = 3; }, +[](Batch& b) { b.rows = 0; }}) {
    Batch batch = packed_batch();
    damage(batch);
    EXPECT_THROW(to_device(batch, torch::kCPU, 12, &weights), Error);
  }
}

TEST(DeviceBatchTest, CopiesContrastivePairs) {
  const ContrastiveBatch pairs{.rows = 2,
                               .query_len = 2,
                               .tool_len = 3,
                               .queries = {5, 6, 7, 0},
                               .tools = {8, 9, 0, 10, 11, 5}};
  const auto batch = to_device(pairs, torch::kCPU, 12);
  EXPECT_TRUE(torch::equal(batch.queries, torch::tensor({{5, 6}, {7, 0}})));
  EXPECT_TRUE(torch::equal(batch.tools, torch::tensor({{8, 9, 0}, {10, 11, 5}})));
  EXPECT_THROW(to_device(pairs, torch::kCPU, 9), DataError);
}

}  // namespace
}  // namespace needle::test
