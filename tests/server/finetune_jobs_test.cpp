#include "needle/server/finetune_jobs.h"

#include <csignal>
#include <filesystem>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include "needle/core/file.h"
#include "needle/server/api_error.h"

#include "tests/server/fake_trainer.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kRow =
    R"({"query":"wake me at 7","tools":[{"name":"set_alarm","parameters":{"time":{"type":"string"}}}],)"
    R"("answers":[{"name":"set_alarm","arguments":{"time":"7"}}]})";

int status_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ApiError& error) {
    return error.status();
  }
  return 200;
}

std::string draft(FinetuneJobs& jobs, std::string_view row = kRow) {
  return jobs.create("mine", {{"kind", "test"}}, "[]", [&](AtomicFileWriter& rows) {
    rows.write(row);
    rows.write(std::string_view("\n"));
  });
}

const Json kSettings = {{"base", "scratch"}, {"shape", "tiny"}, {"epochs", 3}};

class FinetuneJobsTest : public ::testing::Test {
 protected:
  // A job that trains and waits after its first step.
  std::string held(FinetuneJobs& jobs) {
    fake_.set("hold", true);
    const std::string id = draft(jobs);
    jobs.start(id, kSettings);
    EXPECT_TRUE(test::has_begun(jobs, id));
    return id;
  }
  test::TemporaryFolder folder_;
  test::FakeTrainer fake_{folder_.path()};
};

TEST_F(FinetuneJobsTest, TrainsExportsAndPutsTheModelWhereItIsServed) {
  FinetuneJobs jobs(fake_.options());
  for (const std::string model : {"mine", "mine-2"}) {
    const std::string id = draft(jobs);
    EXPECT_EQ(jobs.show(id)["check"]["rows"], 1);
    jobs.start(id, kSettings);
    ASSERT_TRUE(test::reaches(jobs, id, JobStage::kDone)) << jobs.show(id).dump(1);
    EXPECT_EQ(jobs.show(id)["model"], model);
    EXPECT_EQ(read_file(folder_ / "models" / (model + ".needle")), "exported\n");
    EXPECT_EQ(jobs.show(id)["progress"]["curve"], Json::parse("[[1, 3.5], [2, 1.5]]"));
  }
  EXPECT_THAT(fake_.calls(), HasSubstr("--checkpoint none --model-config tiny"));
  EXPECT_THAT(fake_.calls(), HasSubstr("--set train.epochs=3"));
  EXPECT_THAT(fake_.calls(), Not(HasSubstr("--resume")));
}

TEST_F(FinetuneJobsTest, OneAtATime) {
  FinetuneJobs jobs(fake_.options());
  const std::string first = held(jobs);
  const std::string second = draft(jobs);  // drafts may be made meanwhile
  EXPECT_EQ(status_of([&] { jobs.start(second, kSettings); }), 409);
  EXPECT_EQ(status_of([&] { jobs.remove(first); }), 409);
  fake_.set("hold", false);
  ASSERT_TRUE(test::reaches(jobs, first, JobStage::kDone));
  EXPECT_EQ(status_of([&] { jobs.start(first, kSettings); }), 409);  // not twice
  jobs.start(second, kSettings);
  EXPECT_TRUE(test::reaches(jobs, second, JobStage::kDone));
}

TEST_F(FinetuneJobsTest, AFailureSaysWhatTheProgramSaid) {
  FinetuneJobs jobs(fake_.options());
  fake_.set("fail", true);
  const std::string id = draft(jobs);
  jobs.start(id, kSettings);
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kFailed));
  EXPECT_EQ(jobs.show(id)["message"],
            "needle-train ended with code 1: error: rows.jsonl:3: a row that cannot be trained on");
  fake_.set("fail", false);
  jobs.resume(id);
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kDone));
  EXPECT_THAT(fake_.calls(), HasSubstr("--resume"));
}

TEST_F(FinetuneJobsTest, AKilledChildIsAFailureToo) {
  FinetuneJobs jobs(fake_.options());
  const std::string id = held(jobs);
  ::kill(jobs.state(id).process.id, SIGKILL);
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kFailed));
  EXPECT_THAT(jobs.state(id).message, HasSubstr("signal 9 (Killed)"));
}

TEST_F(FinetuneJobsTest, CancelLetsItSaveAndResumeGoesOn) {
  FinetuneJobs jobs(fake_.options());
  const std::string id = held(jobs);
  jobs.cancel(id);
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kCancelled));
  EXPECT_THAT(read_file(jobs.files(id).messages()), HasSubstr("stopped after step 1"));
  EXPECT_EQ(status_of([&] { jobs.cancel(id); }), 409);
  fake_.set("hold", false);
  jobs.resume(id);
  EXPECT_TRUE(test::reaches(jobs, id, JobStage::kDone));
}

TEST_F(FinetuneJobsTest, TheNextServerGoesOnWhereOneWasStopped) {
  std::string id;
  ProcessMark child;
  {
    FinetuneJobs jobs(fake_.options());
    id = held(jobs);
    child = jobs.state(id).process;
  }
  EXPECT_FALSE(is_running(child));
  fake_.set("hold", false);
  FinetuneJobs jobs(fake_.options());
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kDone)) << jobs.show(id).dump(1);
  EXPECT_THAT(fake_.calls(), HasSubstr("--resume"));
}

TEST_F(FinetuneJobsTest, AChildThatOutlivedItsServerIsWaitedFor) {
  std::string id;
  {
    FinetuneJobs jobs(fake_.options());
    id = held(jobs);
    jobs.cancel(id);
    ASSERT_TRUE(test::reaches(jobs, id, JobStage::kCancelled));
  }
  // As a killed server leaves it: at work, by a child that another process began.
  JobProcess child({.arguments = {"/bin/sleep", "0.3"},
                    .folder = folder_.path(),
                    .out = folder_ / "out",
                    .err = folder_ / "err"});
  JobState state = JobState::from_json(read_json_file(folder_ / "jobs" / id / "job.json"));
  state.stage = JobStage::kTraining;
  state.process = child.mark();
  write_json_file(folder_ / "jobs" / id / "job.json", state.to_json());
  fake_.set("hold", false);
  FinetuneJobs jobs(fake_.options());
  for (std::string calls = fake_.calls(); !child.ended(); calls = fake_.calls()) {
    EXPECT_THAT(calls, Not(HasSubstr("--resume")));  // read while the child still ran
  }
  EXPECT_TRUE(test::reaches(jobs, id, JobStage::kDone));
}

TEST_F(FinetuneJobsTest, TwoServersDoNotShareAFolder) {
  FinetuneJobs first(fake_.options());
  draft(first);
  FinetuneJobs second(fake_.options());
  EXPECT_EQ(status_of([&] { draft(second); }), 409);
}

TEST_F(FinetuneJobsTest, RowsThatCannotBeTrainedOnMakeNoJob) {
  FinetuneJobs jobs(fake_.options());
  EXPECT_EQ(status_of([&] { draft(jobs, "{\"query\": 5}"); }), 400);
  EXPECT_EQ(jobs.list()["data"].size(), 0U);
  const std::string id = draft(jobs);
  jobs.add_rows(id, {std::string(kRow)});
  EXPECT_EQ(jobs.show(id)["check"]["rows"], 2);
  EXPECT_EQ(jobs.show(id)["check"]["counts"]["duplicate"], 1);
}

TEST_F(FinetuneJobsTest, AFullDiskIsSaid) {
  JobsOptions options = fake_.options();
  options.min_free_bytes = std::uint64_t{1} << 60;
  FinetuneJobs jobs(options);
  EXPECT_EQ(status_of([&] { draft(jobs); }), 507);
}

// A small disk of its own, where this process may have one.
class SmallDisk {
 public:
  explicit SmallDisk(fs::path place) : place_(std::move(place)) {
    fs::create_directories(place_);
    mounted_ = ::mount("tmpfs", place_.c_str(), "tmpfs", 0, "size=512k") == 0;
  }
  ~SmallDisk() {
    if (mounted_) {
      ::umount2(place_.c_str(), MNT_DETACH);
    }
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  fs::path place_;
  bool mounted_ = false;
};

TEST_F(FinetuneJobsTest, ADiskThatFillsUpWhileItTrainsIsSaidAndTrainingGoesOnOnceThereIsRoom) {
  const JobsOptions options = fake_.options();
  const SmallDisk disk(options.folder);
  if (!disk.mounted()) {
    GTEST_SKIP() << "no right to mount a small disk";
  }
  std::string id;
  {
    FinetuneJobs jobs(options);
    id = draft(jobs);
    fake_.set("fill", true);
    jobs.start(id, kSettings);
    ASSERT_TRUE(test::reaches(jobs, id, JobStage::kFailed)) << jobs.show(id).dump(1);
    ASSERT_EQ(fs::space(options.folder).available, 0U);  // not even room for what the child says
    EXPECT_THAT(jobs.state(id).message, HasSubstr("the disk is full"));
    EXPECT_THAT(jobs.state(id).message, HasSubstr("Continue"));
    EXPECT_EQ(jobs.show(id)["check"]["rows"], 1);
    EXPECT_EQ(status_of([&] { draft(jobs); }), 507);
    EXPECT_EQ(jobs.list()["data"].size(), 1U);  // nothing of the refused one is left
  }
  // What lies on the disk is whole, also for the next server.
  EXPECT_EQ(read_file(JobFiles{options.folder / id}.rows()), std::string(kRow) + "\n");
  EXPECT_EQ(JobState::from_json(read_json_file(JobFiles{options.folder / id}.state())).id, id);
  fs::remove(JobFiles{options.folder / id}.run() / "checkpoint");
  fake_.set("fill", false);
  FinetuneJobs jobs(options);
  if (jobs.state(id).stage == JobStage::kFailed) {
    jobs.resume(id);
  }
  ASSERT_TRUE(test::reaches(jobs, id, JobStage::kDone)) << jobs.show(id).dump(1);
  EXPECT_EQ(jobs.show(id)["progress"]["curve"], Json::parse("[[1, 3.5], [2, 1.5]]"));
}

TEST_F(FinetuneJobsTest, WithoutATrainerRowsCanBeMadeButNotTrainedOn) {
  JobsOptions options = fake_.options();
  options.train_program.clear();
  FinetuneJobs jobs(options);
  EXPECT_EQ(status_of([&] { jobs.start(draft(jobs), kSettings); }), 501);
  options.train_program = "/nowhere/needle-train";
  options.folder = folder_ / "other";
  FinetuneJobs others(options);
  const std::string id = draft(others);
  others.start(id, kSettings);
  ASSERT_TRUE(test::reaches(others, id, JobStage::kFailed));
  EXPECT_THAT(others.state(id).message, HasSubstr("No such file"));
}

TEST_F(FinetuneJobsTest, SlowRowsAreMadeInTheBackground) {
  FinetuneJobs jobs(fake_.options());
  const std::string made = jobs.create_slowly(
      "slow", {{"kind", "endpoint"}}, "[]", [](AtomicFileWriter& rows, const FinetuneJobs::Stop&) {
        rows.write(std::string(kRow) + "\n");
        return std::string("1 of 2 rows came");
      });
  ASSERT_TRUE(test::reaches(jobs, made, JobStage::kDraft));
  EXPECT_EQ(jobs.state(made).message, "1 of 2 rows came");
  const std::string stopped = jobs.create_slowly(
      "slow", {{"kind", "endpoint"}}, "[]", [](AtomicFileWriter&, const FinetuneJobs::Stop& stop) {
        while (!stop()) {
        }
        return std::string();
      });
  jobs.cancel(stopped);
  EXPECT_TRUE(test::reaches(jobs, stopped, JobStage::kCancelled));
  const std::string failed = jobs.create_slowly(
      "slow", {{"kind", "endpoint"}}, "[]",
      [](AtomicFileWriter&, const FinetuneJobs::Stop&) -> std::string { throw Error("no rows"); });
  ASSERT_TRUE(test::reaches(jobs, failed, JobStage::kFailed));
  EXPECT_EQ(jobs.state(failed).message, "no rows");
}

}  // namespace
}  // namespace needle
