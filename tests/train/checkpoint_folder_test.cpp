#include "needle/train/checkpoint_folder.h"

#include <csignal>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::filesystem::path save(CheckpointFolder& checkpoints, std::int64_t step) {
  return checkpoints.save(step, [step](const std::filesystem::path& folder) {
    write_text(folder / "model.safetensors", std::string(1000, static_cast<char>('a' + step % 26)));
    write_text(folder / "state.json", "{}");
  });
}

std::vector<std::int64_t> steps(const CheckpointFolder& checkpoints) {
  std::vector<std::int64_t> result;
  for (const CheckpointRef& checkpoint : checkpoints.list()) {
    result.push_back(checkpoint.step);
  }
  return result;
}

TEST(CheckpointFolderTest, RotationKeepsTheNewestAndTheBest) {
  const test::TemporaryFolder run;
  CheckpointFolder checkpoints(run.path(), 2);
  for (const std::int64_t step : {10, 20, 30, 40}) {
    save(checkpoints, step);
    if (step == 10) {
      checkpoints.mark_best(10);
    }
  }
  EXPECT_THAT(steps(checkpoints), ElementsAre(10, 30, 40));
  EXPECT_EQ(checkpoints.best()->step, 10);
  EXPECT_EQ(read_file(run / "checkpoints/latest"), "step-000040\n");
  EXPECT_EQ(resolve_checkpoint(run.path()).filename(), "step-000010");
  EXPECT_EQ(resolve_checkpoint(run / "checkpoints/step-000040").filename(), "step-000040");
}

TEST(CheckpointFolderTest, DamagedNewestFallsBackAndSaysSo) {
  const test::TemporaryFolder run;
  CheckpointFolder checkpoints(run.path());
  save(checkpoints, 1);
  save(checkpoints, 2);
  save(checkpoints, 3);
  write_text(run / "checkpoints/step-000003/model.safetensors",
             std::string(1000, 'x'));  // same size
  std::filesystem::resize_file(run / "checkpoints/step-000002/model.safetensors", 999);
  std::vector<std::string> warnings;
  EXPECT_EQ(checkpoints.newest_valid(warnings)->step, 1);
  ASSERT_EQ(warnings.size(), 2U);
  EXPECT_THAT(warnings[0], HasSubstr("SHA-256"));
  EXPECT_THAT(warnings[1], HasSubstr("999 bytes"));
  EXPECT_EQ(resolve_checkpoint(run.path()).filename(), "step-000001");

  std::filesystem::remove(run / "checkpoints/step-000001/manifest.json");
  EXPECT_THROW(checkpoints.newest_valid(warnings), FormatError);
}

TEST(CheckpointFolderTest, AnEmptyRunHasNone) {
  const test::TemporaryFolder run;
  const CheckpointFolder checkpoints(run.path());
  std::vector<std::string> warnings;
  EXPECT_FALSE(checkpoints.newest_valid(warnings).has_value());
  EXPECT_FALSE(checkpoints.best().has_value());
  EXPECT_THROW(resolve_checkpoint(run.path()), FileError);
}

TEST(CheckpointFolderTest, AFailedSaveLeavesWhatWasThere) {
  const test::TemporaryFolder run;
  CheckpointFolder checkpoints(run.path(), 1);
  save(checkpoints, 5);
  EXPECT_THROW(
      checkpoints.save(6, [](const std::filesystem::path&) { throw FileError("no space left"); }),
      FileError);
  EXPECT_THAT(steps(checkpoints), ElementsAre(5));
  EXPECT_EQ(read_file(run / "checkpoints/latest"), "step-000005\n");
  std::size_t entries = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(run / "checkpoints")) {
    ++entries;
  }
  EXPECT_EQ(entries, 2U);  // the checkpoint and `latest`: nothing temporary is left
}

TEST(CheckpointFolderTest, AFullDiskLeavesThePreviousCheckpointIntact) {
  const test::TemporaryFolder run;
  CheckpointFolder checkpoints(run.path(), 1);
  save(checkpoints, 5);
  // A limit on the size of files stands for a full disk: writing beyond it fails as ENOSPC does.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{.rlim_cur = 4096, .rlim_max = before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(checkpoints.save(6,
                                [](const std::filesystem::path& folder) {
                                  write_file_atomic(folder / "model.safetensors",
                                                    std::string(100000, 'm'));
                                }),
               FileError);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_THAT(steps(checkpoints), ElementsAre(5));
  EXPECT_EQ(checkpoint_damage(run / "checkpoints/step-000005"), "");
}

}  // namespace
}  // namespace needle
