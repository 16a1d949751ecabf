#include "needle/data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

using ::testing::HasSubstr;

class PrepareTest : public ::testing::Test {
 protected:
  PrepareTest() {
    write_rows("a.jsonl", timer_rows(20));
    config_.prompt.max_enc_len = 256;
    config_.prompt.max_dec_len = 128;
  }
  void write_rows(std::string_view name, const std::vector<CallExample>& rows) {
    std::string text;
    for (const CallExample& row : rows) {
      text += to_jsonl(row);
    }
    write_text(folder_ / name, text);
  }
  PreparedDataset prepare(const std::vector<std::filesystem::path>& inputs) {
    return prepare_dataset(inputs, tokenizer_, config_, folder_ / "cache/sets", pool_);
  }
  PreparedDataset prepare() { return prepare({folder_ / "a.jsonl"}); }

  TemporaryFolder folder_;
  Tokenizer tokenizer_ = golden_tokenizer();
  ThreadPool pool_{2};
  PrepareConfig config_;
};

TEST_F(PrepareTest, IsMadeOnceAndThenReused) {
  const PreparedDataset first = prepare();
  EXPECT_FALSE(first.reused);
  EXPECT_EQ(first.dataset.example_count(), 20);
  EXPECT_EQ(first.dataset.info().report.kept, 20);
  EXPECT_EQ(first.dataset.info().tokenizer_fingerprint, tokenizer_.fingerprint());
  const PreparedDataset second = prepare();
  EXPECT_TRUE(second.reused);
  EXPECT_EQ(second.path, first.path);
  EXPECT_EQ(second.dataset.info().content_hash, first.dataset.info().content_hash);
  // Where the file lies does not matter, only what it holds.
  std::filesystem::rename(folder_ / "a.jsonl", folder_ / "b.jsonl");
  EXPECT_TRUE(prepare({folder_ / "b.jsonl"}).reused);
}

TEST_F(PrepareTest, IsMadeAgainWhenInputsOrSettingsChange) {
  const PreparedDataset first = prepare();
  write_rows("a.jsonl", timer_rows(21));
  const PreparedDataset more = prepare();
  EXPECT_FALSE(more.reused);
  EXPECT_EQ(more.dataset.example_count(), 21);
  config_.encode.shuffle_tools = false;
  const PreparedDataset unshuffled = prepare();
  EXPECT_FALSE(unshuffled.reused);
  EXPECT_NE(unshuffled.path, more.path);
}

TEST_F(PrepareTest, ADamagedStoredFileIsMadeAgain) {
  const PreparedDataset first = prepare();
  const std::string bytes = read_file(first.path);
  write_text(first.path, std::string_view(bytes).substr(0, bytes.size() - 3));
  const PreparedDataset again = prepare();
  EXPECT_FALSE(again.reused);
  EXPECT_EQ(read_file(again.path), bytes);  // and is the same to the byte
}

TEST_F(PrepareTest, SeveralFilesAreOneInput) {
  write_rows("b.jsonl", timer_rows(5));
  const PreparedDataset both = prepare({folder_ / "a.jsonl", folder_ / "b.jsonl"});
  ASSERT_EQ(both.dataset.example_count(), 25);
  EXPECT_EQ(both.dataset.example(24).row, 24);
  config_.max_rows = 22;
  EXPECT_EQ(prepare({folder_ / "a.jsonl", folder_ / "b.jsonl"}).dataset.example_count(), 22);
}

TEST_F(PrepareTest, MemoryAndFilesGiveTheSameDataSet) {
  const PreparedDataset stored = prepare();
  const PackedDataset memory = make_dataset(timer_rows(20), tokenizer_, config_, pool_);
  ASSERT_EQ(memory.row_count(), stored.dataset.row_count());
  for (std::int64_t row = 0; row < memory.row_count(); ++row) {
    const std::vector<std::int64_t> rows{row};
    EXPECT_EQ(memory.batch(rows).source, stored.dataset.batch(rows).source);
  }
}

TEST_F(PrepareTest, BadRowsStopOrAreListed) {
  write_text(folder_ / "a.jsonl", to_jsonl(timer_row(1)) + "nonsense\n" + to_jsonl(timer_row(2)));
  EXPECT_THROW(prepare(), DataError);
  config_.skip_bad_rows = true;
  const PreparedDataset prepared = prepare();
  EXPECT_EQ(prepared.dataset.example_count(), 2);
  ASSERT_EQ(prepared.problems.size(), 1u);
  EXPECT_EQ(prepared.problems[0].line, 2);
}

TEST_F(PrepareTest, NoRowLeftIsAnErrorThatSaysWhy) {
  write_text(folder_ / "a.jsonl", "\n");
  EXPECT_THROW(prepare(), DataError);
  write_rows("a.jsonl", timer_rows(3));
  config_.prompt.max_dec_len = 6;
  try {
    prepare();
    FAIL() << "expected DataError";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("3 dropped (answer too long)"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "cache"));
}

TEST_F(PrepareTest, ImpossibleSettingsAndFoldersAreRefused) {
  config_.prompt.max_enc_len = 1;
  EXPECT_THROW(prepare(), ConfigError);
  config_.prompt.max_enc_len = 256;
  write_text(folder_ / "cache", "a file");
  EXPECT_THROW(prepare(), FileError);
  EXPECT_THROW(prepare({folder_ / "absent.jsonl"}), FileError);
}

TEST_F(PrepareTest, OneRowIsADataSet) {
  write_rows("a.jsonl", timer_rows(1));
  const PreparedDataset one = prepare();
  EXPECT_EQ(one.dataset.row_count(), 1);
  EXPECT_GT(one.dataset.batch(std::vector<std::int64_t>{0}).target_tokens(), 0);
}

TEST_F(PrepareTest, ProgressEndsAtTheNumberOfRows) {
  std::int64_t last = 0;
  const std::vector<std::filesystem::path> inputs{folder_ / "a.jsonl"};
  prepare_dataset(inputs, tokenizer_, config_, folder_ / "cache", pool_,
                  [&last](std::int64_t rows) { last = rows; });
  EXPECT_EQ(last, 20);
}

TEST_F(PrepareTest, PretrainingRowsMayBePackedOrNot) {
  std::string text;
  for (int i = 0; i < 12; ++i) {
    text += format(R"({{"query":"q {}","query_seed_text":"s","synthetic_answer":"a {}"}})", i, i);
    text += "\n";
  }
  write_text(folder_ / "a.jsonl", text);
  config_.kind = RowKind::kPretrain;
  const PreparedDataset packed = prepare();
  EXPECT_LT(packed.dataset.row_count(), 12);
  EXPECT_FALSE(packed.dataset.has_classes());
  EXPECT_TRUE(packed.dataset.info().packed);
  config_.pack = false;
  const PreparedDataset ragged = prepare();
  EXPECT_EQ(ragged.dataset.row_count(), 12);
  EXPECT_EQ(ragged.dataset.target_tokens(), packed.dataset.target_tokens());
  EXPECT_LT(ragged.dataset.batch(std::vector<std::int64_t>{0, 1}).enc_len, 256);
}

}  // namespace
}  // namespace needle::test
