#include "needle/data/packed_dataset.h"

#include <algorithm>
#include <numeric>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/safetensors.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::HasSubstr;

std::vector<std::int64_t> all_rows(const PackedDataset& dataset) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(dataset.row_count()));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  return rows;
}

void expect_equal(const EncodedExample& a, const EncodedExample& b) {
  EXPECT_EQ(a.row, b.row);
  EXPECT_EQ(a.source, b.source);
  EXPECT_EQ(a.decoder_in, b.decoder_in);
  EXPECT_EQ(a.target, b.target);
  EXPECT_EQ(a.classes, b.classes);
  EXPECT_EQ(a.query_ids, b.query_ids);
  ASSERT_EQ(a.tools.size(), b.tools.size());
  for (std::size_t i = 0; i < a.tools.size(); ++i) {
    EXPECT_EQ(a.tools[i].called, b.tools[i].called);
    EXPECT_EQ(a.tools[i].ids, b.tools[i].ids);
  }
}

void add(PackedDatasetBuilder& builder, const std::vector<EncodedExample>& examples) {
  builder.add(examples);
  builder.add_report({.rows = 1, .kept = 1});
}

TEST(PackedDatasetTest, MemoryAndDiskHoldTheSameExamplesAndBatches) {
  const TemporaryFolder folder;
  const auto examples = random_examples(60, 30, 12, 1);
  PackedDatasetBuilder builder(test_info(40, 20));
  add(builder, examples);
  const PackedDataset memory = builder.build();
  EXPECT_EQ(builder.example_count(), 0);
  add(builder, examples);
  builder.write(folder / "data.safetensors");
  const PackedDataset disk = PackedDataset::open(folder / "data.safetensors");

  EXPECT_EQ(disk.example_count(), 60);
  EXPECT_LT(disk.row_count(), 60);
  EXPECT_EQ(disk.info().report.rows, 1);
  EXPECT_TRUE(disk.has_classes());
  for (const PackedDataset* dataset : {&memory, &disk}) {
    for (std::size_t i = 0; i < examples.size(); ++i) {
      expect_equal(dataset->example(static_cast<std::int64_t>(i)), examples[i]);
    }
  }
  const Batch a = memory.batch(all_rows(memory));
  const Batch b = disk.batch(all_rows(disk));
  EXPECT_EQ(a.source, b.source);
  EXPECT_EQ(a.target, b.target);
  EXPECT_EQ(a.classes, b.classes);
  EXPECT_EQ(a.decoder_segments, b.decoder_segments);
  EXPECT_EQ(a.target_tokens(), disk.target_tokens());
}

TEST(PackedDatasetTest, ARowIsItsExamplesWithTheirSegments) {
  const auto examples = random_examples(30, 12, 9, 2);
  PackedDatasetBuilder builder(test_info(24, 20));
  add(builder, examples);
  const PackedDataset dataset = builder.build();
  std::int64_t targets = 0;
  for (std::int64_t row = 0; row < dataset.row_count(); ++row) {
    const Batch batch = dataset.batch(std::vector<std::int64_t>{row}, {.multiple = 1});
    std::size_t at = 0;
    std::size_t decoder_at = 0;
    std::int32_t segment = 0;
    for (const std::int64_t index : dataset.row_examples(row)) {
      const EncodedExample& example = examples[static_cast<std::size_t>(index)];
      ++segment;
      for (const TokenId id : example.source) {
        EXPECT_EQ(batch.source.at(at), id);
        EXPECT_EQ(batch.source_segments.at(at++), segment);
      }
      for (std::size_t i = 0; i < example.target.size(); ++i, ++decoder_at) {
        EXPECT_EQ(batch.decoder_in.at(decoder_at), example.decoder_in[i]);
        EXPECT_EQ(batch.target.at(decoder_at), example.target[i]);
        EXPECT_EQ(batch.classes.at(decoder_at), static_cast<std::int8_t>(example.classes[i]));
        EXPECT_EQ(batch.decoder_segments.at(decoder_at), segment);
      }
    }
    EXPECT_EQ(at, batch.source.size());  // multiple 1: a batch of one row has no padding
    EXPECT_EQ(decoder_at, batch.target.size());
    EXPECT_EQ(dataset.row_target_tokens(row), batch.target_tokens());
    targets += batch.target_tokens();
  }
  EXPECT_EQ(targets, dataset.target_tokens());
}

TEST(PackedDatasetTest, LengthsAreTheLongestRoundedUpButNeverAboveTheLimit) {
  auto examples = random_examples(3, 1, 1, 3);
  examples[0].source.assign(9, 7);
  examples[1].source.assign(21, 7);
  PackedDatasetBuilder builder(test_info(22, 16, false));
  add(builder, examples);
  const PackedDataset dataset = builder.build();
  const auto enc_len = [&](std::vector<std::int64_t> rows, const BatchShape& shape) {
    return dataset.batch(rows, shape).enc_len;
  };
  EXPECT_EQ(enc_len({0}, {}), 16);
  EXPECT_EQ(enc_len({0, 2}, {.multiple = 3}), 9);
  EXPECT_EQ(enc_len({0, 1}, {}), 22);
  EXPECT_EQ(enc_len({2}, {.full_length = true}), 22);
  const Batch batch = dataset.batch(std::vector<std::int64_t>{2, 0}, {.multiple = 1});
  EXPECT_EQ(batch.rows, 2);
  EXPECT_EQ(batch.source[1], kPadId);
  EXPECT_TRUE(batch.source_segments.empty());  // not packed
}

TEST(PackedDatasetTest, ABatchIsReusedWhole) {
  PackedDatasetBuilder builder(test_info(30, 12));
  add(builder, random_examples(20, 30, 12, 4));
  const PackedDataset dataset = builder.build();
  Batch reused = dataset.batch(all_rows(dataset));
  dataset.fill_batch(std::vector<std::int64_t>{1}, reused);
  const Batch fresh = dataset.batch(std::vector<std::int64_t>{1});
  EXPECT_EQ(reused.source, fresh.source);
  EXPECT_EQ(reused.classes, fresh.classes);
  EXPECT_EQ(reused.decoder_segments, fresh.decoder_segments);
}

TEST(PackedDatasetTest, MisuseIsAnError) {
  PackedDatasetBuilder builder(test_info(30, 12));
  add(builder, random_examples(2, 30, 12, 4));
  const PackedDataset dataset = builder.build();
  EXPECT_THROW(dataset.batch(std::vector<std::int64_t>{}), Error);
  EXPECT_THROW(dataset.batch(std::vector<std::int64_t>{99}), Error);
  EXPECT_THROW(dataset.batch(std::vector<std::int64_t>{-1}), Error);
  EXPECT_THROW(dataset.example(2), Error);
  EXPECT_THROW(dataset.tool_ids(0, 99), Error);
  EXPECT_THROW(builder.add(random_examples(1, 90, 12, 1)), Error);  // longer than a row
}

TEST(PackedDatasetTest, IdsThatDoNotFitAreRefused) {
  DatasetInfo info = test_info(30, 12);
  info.vocab_size = 40000;
  auto examples = random_examples(1, 5, 5, 1);
  examples[0].source[0] = 32768;
  PackedDatasetBuilder builder(info);
  EXPECT_THROW(builder.add(examples), DataError);
  examples[0].source[0] = 32767;
  EXPECT_NO_THROW(builder.add(examples));
  PackedDatasetBuilder small(test_info(30, 12));
  EXPECT_THROW(small.add(examples), DataError);  // 32767 is not below 512
}

TEST(PackedDatasetTest, AnEmptyDataSetSurvives) {
  const TemporaryFolder folder;
  PackedDatasetBuilder builder(test_info(8, 8));
  builder.write(folder / "empty.safetensors");
  EXPECT_EQ(PackedDataset::open(folder / "empty.safetensors").row_count(), 0);
}

class DamagedDatasetTest : public ::testing::Test {
 protected:
  DamagedDatasetTest() {
    PackedDatasetBuilder builder(test_info(20, 12));
    add(builder, random_examples(5, 20, 12, 6));
    builder.write(path_);
  }

  // Rewrites the file with one number changed and gives the error of opening it.
  template <typename T>
  std::string error_with(std::string_view tensor, std::size_t index, T value) {
    const std::string bytes = read_file(path_);
    std::map<std::string, std::string, std::less<>> metadata;
    std::map<std::string, std::string> copies;
    std::map<std::string, TensorView, std::less<>> tensors;
    {
      const SafetensorsFile file(path_);
      metadata = file.metadata();
      for (const auto& [name, view] : file.tensors()) {
        copies[name] =
            std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
        tensors[name] = view;
      }
    }
    std::memcpy(copies.at(std::string(tensor)).data() + index * sizeof(T), &value, sizeof(T));
    for (auto& [name, view] : tensors) {
      view.bytes = std::as_bytes(std::span(copies[name].data(), copies[name].size()));
    }
    const auto damaged = folder_ / "damaged.safetensors";
    write_safetensors(damaged, tensors, metadata);
    try {
      PackedDataset::open(damaged);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "opened";
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "data.safetensors";
};

TEST_F(DamagedDatasetTest, EveryOffsetIdAndClassIsChecked) {
  EXPECT_THAT(error_with<std::int16_t>("tokens/source", 0, 512), HasSubstr("is 512"));
  EXPECT_THAT(error_with<std::int16_t>("tokens/target", 1, -3), HasSubstr("is -3"));
  EXPECT_THAT(error_with<std::int8_t>("types/classes", 0, 4), HasSubstr("is 4"));
  EXPECT_THAT(error_with<std::int8_t>("types/called", 0, 2), HasSubstr("is 2"));
  for (const char* name : {"index/source", "index/decoder", "index/query", "index/tools",
                           "index/tool_tokens", "index/rows"}) {
    EXPECT_THAT(error_with<std::int64_t>(name, 1, 1 << 30), HasSubstr(name));
    EXPECT_THAT(error_with<std::int64_t>(name, 0, -1), HasSubstr(name));
  }
  EXPECT_THAT(error_with<std::int64_t>("index/row_examples", 0, 5), HasSubstr("no example"));
  EXPECT_THAT(error_with<std::int64_t>("index/row_examples", 0, -1), HasSubstr("no example"));
  EXPECT_EQ(error_with<std::int64_t>("index/input_rows", 0, 77), "opened");  // free to be anything
}

TEST_F(DamagedDatasetTest, TruncatedFilesAreRefused) {
  const std::string bytes = read_file(path_);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    write_text(folder_ / "cut.safetensors", std::string_view(bytes).substr(0, size));
    EXPECT_THROW(PackedDataset::open(folder_ / "cut.safetensors"), FormatError) << size;
  }
  EXPECT_THROW(PackedDataset::open(folder_ / "absent.safetensors"), FileError);
}

TEST_F(DamagedDatasetTest, OtherSafetensorsFilesAreRefused) {
  write_safetensors(folder_ / "other.safetensors", {}, {});
  EXPECT_THROW(PackedDataset::open(folder_ / "other.safetensors"), FormatError);
}

}  // namespace
}  // namespace needle::test
