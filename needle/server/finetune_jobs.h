// The finetunings of the page: made, trained by needle-train and needle-export as child processes
// one at a time, kept in a folder and found there again by the next server.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/server/finetune_job.h"
#include "needle/server/job_progress.h"

namespace needle {

struct JobsOptions {
  std::filesystem::path folder;          // of this class alone; made when first needed
  std::filesystem::path models;          // finished models are put there
  std::filesystem::path train_program;   // needle-train; empty: rows can be made, not trained on
  std::filesystem::path export_program;  // needle-export
  std::uint64_t min_free_bytes = std::uint64_t{256} << 20;  // of the disk, to begin anything
  std::int64_t patience_ms = 20'000;  // from the wish to stop to SIGKILL: a checkpoint is written
};

// Thread-safe. Throws ApiError: 404 for an unknown job, 409 while another is at work or if the
// folder is another server's, 507 when the disk is full.
class FinetuneJobs {
 public:
  // Training that a server left behind goes on at once, from its last checkpoint.
  explicit FinetuneJobs(JobsOptions options);
  // A training at work saves and ends; the next server goes on with it.
  ~FinetuneJobs();

  using Stop = std::function<bool()>;  // whether to stop
  // Writes rows (JSONL). May throw what a request may be answered with.
  using Writer = std::function<void(AtomicFileWriter& rows)>;
  // The same for minutes; may leave off early and returns what is to be said about it, or "".
  using SlowWriter = std::function<std::string(AtomicFileWriter& rows, const Stop& stop)>;

  // A draft with these rows. `source`: {"kind",...}; `tools`: JSON text for later rows. Returns its
  // id.
  std::string create(const std::string& name, Json source, std::string_view tools,
                     const Writer& write);
  std::string create_slowly(const std::string& name, Json source, std::string_view tools,
                            SlowWriter write);
  // More rows, a JSON text each, for a draft.
  void add_rows(const std::string& id, const std::vector<std::string>& lines);

  // `settings`: {"base": "scratch" | "released" | id of a job that is done, "shape","epochs"}.
  void start(const std::string& id, const Json& settings);
  void resume(const std::string& id);  // one that failed or was cancelled
  void cancel(const std::string& id);
  void remove(const std::string& id);

  Json list() const;                            // the newest first, without progress
  Json show(const std::string& id) const;       // with "progress"
  JobFiles files(const std::string& id) const;  // throws 404
  JobState state(const std::string& id) const;
  // Makes the folder and checks the room on its disk for so many bytes more.
  void prepare(std::uint64_t bytes = 0);

 private:
  enum class Outcome { kDone, kFailed, kCancelled, kStopped };

  void open_folder();
  void load_states();
  JobState& find(const std::string& id);  // with the mutex held
  const JobState& find(const std::string& id) const;
  void change(const std::string& id, const std::function<void(JobState&)>& edit);
  JobState new_job(const std::string& name, Json source, std::string_view tools);
  void check_rows(const std::string& id);
  void begin(const std::string& id, JobStage stage, std::function<void()> work,
             const Json& settings = nullptr);
  void work();

  void make(const std::string& id, const SlowWriter& write);
  void train(const std::string& id, bool resuming);
  std::vector<std::string> train_arguments(const JobState& job, bool resuming) const;
  Outcome run_child(const std::string& id, const std::vector<std::string>& arguments,
                    const std::filesystem::path& out);
  Outcome wait_for(const std::function<bool()>& ended, const std::function<void(int)>& signal);
  void publish(const std::string& id);
  bool should_stop() const { return cancel_ || stopping_; }

  const JobsOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::string, JobState> jobs_;
  mutable std::map<std::string, JobProgress> progress_;
  std::function<void()> task_;  // what the worker does next
  std::string active_;          // the job at work
  std::atomic<bool> cancel_ = false;
  std::atomic<bool> stopping_ = false;
  int lock_ = -1;  // of the folder
  std::uint64_t made_ = 0;
  std::thread worker_;  // the last: it uses the others
};

}  // namespace needle
