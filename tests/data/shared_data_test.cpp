// Every real file of the shared data folder goes through reader, check and encoder.
#include <algorithm>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "needle/core/thread_pool.h"
#include "needle/data/encode.h"
#include "needle/data/jsonl_reader.h"
#include "needle/data/prepare.h"
#include "needle/data/split.h"

#include "tests/data/fixture.h"

namespace needle::test {
namespace {

constexpr std::int64_t kRows = 200;  // a file; the whole folder takes a minute

TEST(SharedDataIntegrationTest, EveryFileIsReadEncodedAndPacked) {
  const std::filesystem::path folder = shared_dir() / "data";
  if (!std::filesystem::is_directory(folder)) {
    GTEST_SKIP() << folder << " does not exist";
  }
  const Tokenizer tokenizer = golden_tokenizer();
  ThreadPool pool;
  PrepareConfig config;
  config.prompt.max_enc_len = 8192;  // the tokenizer is a tiny one: three times the tokens
  config.prompt.max_dec_len = 1024;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.find(".jsonl") == std::string::npos) {
      continue;
    }
    SCOPED_TRACE(name);
    ++files;
    std::int64_t texts = 0;
    for_each_text(entry.path(), [&](std::string_view) { ++texts; }, {.max_rows = kRows});
    EXPECT_GE(texts, 100);
    if (name.starts_with("pretrain_text")) {
      continue;
    }
    if (name.starts_with("pretrain_rows")) {
      std::vector<PretrainExample> rows;
      for_each_pretrain_example(entry.path(), [&](PretrainExample row) { rows.push_back(row); },
                                {.max_rows = kRows});
      config.kind = RowKind::kPretrain;
      EXPECT_EQ(make_dataset(rows, tokenizer, config, pool).example_count(), kRows);
      continue;
    }
    std::vector<CallExample> rows;
    for_each_call_example(entry.path(), [&](CallExample row) { rows.push_back(row); },
                          {.max_rows = kRows});
    const PackedDataset dataset = make_dataset(rows, tokenizer, config, pool);
    const EncodeReport& report = dataset.info().report;
    EXPECT_EQ(report.rows, static_cast<std::int64_t>(rows.size()));
    EXPECT_EQ(report.kept, report.rows) << report.text();
    EXPECT_EQ(report.cut_tools_tokens, 0) << report.text();
    EXPECT_EQ(report.answers_not_json, 0);
    EXPECT_FALSE(split_by_tool(rows).train.empty());
  }
  EXPECT_GT(files, 0);
}

}  // namespace
}  // namespace needle::test
