// Shell scripts that stand in for needle-train and needle-export: they print the records that the
// real ones print, and wait where a test wants them to.
#pragma once

#include <filesystem>
#include <string>

#include "needle/server/finetune_jobs.h"

namespace needle::test {

class FakeTrainer {
 public:
  // The scripts lie in `folder`. While a file "hold" lies there, needle-train waits after its first
  // step; with "fail" it ends with code 1 and an error.
  explicit FakeTrainer(std::filesystem::path folder);

  JobsOptions options() const;
  void set(const std::string& name, bool there) const;
  std::string calls() const;  // what needle-train was called with, a line each

  std::filesystem::path folder;
};

// Waits until `jobs` says that the job has reached `stage`; false after ten seconds.
bool reaches(const FinetuneJobs& jobs, const std::string& id, JobStage stage);
// Waits until the training has made its first step.
bool has_begun(const FinetuneJobs& jobs, const std::string& id);

}  // namespace needle::test
