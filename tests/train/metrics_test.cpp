#include "needle/train/metrics.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/file.h"
#include "needle/train/svg_chart.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using testing::HasSubstr;

StepRecord record_of(std::int64_t step) {
  return {.step = step,
          .total_steps = 10,
          .epoch = 0.5,
          .loss = 2.0 / static_cast<double>(step),
          .grad_norm = 1.5};
}

TEST(MetricsTest, EveryRecordIsOneJsonLine) {
  const test::TemporaryFolder folder;
  {
    MetricsWriter writer(folder.path(), 0);
    writer.write(record_of(1));
    writer.write(ValidationRecord{.step = 1, .scores = {{"perplexity", 3.0}, {"call_f1", 0.5}}});
  }
  const std::vector<Json> records = read_metrics(folder.path());
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0]["kind"], "train");
  EXPECT_EQ(records[0]["loss"], 2.0);
  EXPECT_FALSE(records[0].contains("contrastive"));
  EXPECT_EQ(records[1]["kind"], "validation");
  EXPECT_EQ(records[1]["call_f1"], 0.5);
}

TEST(MetricsTest, LossThatIsNotANumberIsNull) {
  StepRecord record = record_of(1);
  record.loss = std::nan("");
  record.grad_norm = std::numeric_limits<double>::infinity();
  record.skipped = true;
  const std::string line = record.to_json().dump();
  EXPECT_TRUE(Json::parse(line)["loss"].is_null());
  EXPECT_TRUE(Json::parse(line)["grad_norm"].is_null());
  EXPECT_TRUE(Json::parse(line)["skipped"].get<bool>());
}

TEST(MetricsTest, ResumingDropsLaterRecordsAndABrokenLastLine) {
  const test::TemporaryFolder folder;
  {
    MetricsWriter writer(folder.path(), 0);
    for (std::int64_t step = 1; step <= 4; ++step) {
      writer.write(record_of(step));
    }
  }
  write_file_atomic(folder / "metrics.jsonl",
                    read_file(folder / "metrics.jsonl") + R"({"kind":"train","st)");
  {
    MetricsWriter writer(folder.path(), 2);
    writer.write(record_of(3));
  }
  std::vector<std::int64_t> steps;
  for (const Json& record : read_metrics(folder.path())) {
    steps.push_back(record["step"].get<std::int64_t>());
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{1, 2, 3}));
}

TEST(MetricsTest, ARunThatWentBackKeepsBothItsPasts) {
  const test::TemporaryFolder folder;
  const auto write_all = [&folder](MetricsWriter& writer) {
    writer.write(record_of(3));
    writer.write(record_of(4));
    writer.write(RollbackRecord{.step = 2, .from_step = 4, .reason = "spike", .rollbacks = 1});
    writer.write(record_of(3));
    writer.write(record_of(4));
  };
  const auto kept = [&folder](std::int64_t step, std::int64_t rollbacks) {
    MetricsWriter(folder.path(), step, rollbacks);
    std::vector<std::int64_t> steps;
    for (const Json& record : read_metrics(folder.path())) {
      steps.push_back(record["step"].get<std::int64_t>() * (record["kind"] == "rollback" ? -1 : 1));
    }
    return steps;
  };
  {
    MetricsWriter writer(folder.path(), 0);
    writer.write(record_of(1));
    writer.write(record_of(2));
    write_all(writer);
  }
  using Steps = std::vector<std::int64_t>;
  EXPECT_EQ(kept(4, 1), (Steps{1, 2, 3, 4, -2, 3, 4}));
  EXPECT_EQ(kept(3, 1), (Steps{1, 2, 3, 4, -2, 3}));
  const std::string chart = read_file(write_loss_chart(folder.path(), "t"));
  // A checkpoint from before the roll-back knows nothing of it.
  EXPECT_EQ(kept(3, 0), (Steps{1, 2, 3}));
  // The chart shows 1, 2 and the later 3.
  EXPECT_EQ(read_file(write_loss_chart(folder.path(), "t")), chart);
}

TEST(MetricsTest, ConsoleLineHasFixedKeys) {
  StepRecord record = record_of(2);
  EXPECT_THAT(record.console_line(), HasSubstr("step=2/10 epoch=0.50 loss=1.0000"));
  EXPECT_THAT(record.console_line(), HasSubstr("contrastive=- "));
  record.contrastive = 4.25;
  EXPECT_THAT(record.console_line(), HasSubstr("contrastive=4.2500 "));
}

TEST(MetricsTest, LossChartShowsTrainingAndValidation) {
  const test::TemporaryFolder folder;
  {
    MetricsWriter writer(folder.path(), 0);
    for (std::int64_t step = 1; step <= 10; ++step) {
      writer.write(record_of(step));
    }
    writer.write(ValidationRecord{.step = 10, .scores = {{"perplexity", 3.0}}});
  }
  const std::string svg = read_file(write_loss_chart(folder.path(), "tiny <run>"));
  EXPECT_THAT(svg, HasSubstr("tiny &lt;run&gt;"));
  EXPECT_THAT(svg, HasSubstr(">training loss<"));
  EXPECT_THAT(svg, HasSubstr(">validation (ln perplexity)<"));
  EXPECT_THAT(svg, testing::Not(HasSubstr("INT4")));  // no such scores, no entry in the legend
  EXPECT_THAT(svg, HasSubstr(kChartOrange));
}

}  // namespace
}  // namespace needle
