// The thread that works on finetunings.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <sys/wait.h>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/server/api_error.h"
#include "needle/server/finetune_jobs.h"

namespace needle {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr int kFewRows = 1000;

// A child on a full disk cannot even write down why it ended; one that could has freed its
// temporary file before, so that there is room again.
std::string disk_hint(const fs::path& folder, std::string_view said) {
  std::error_code unknown;
  const fs::space_info room = fs::space(folder, unknown);
  const std::string reason = std::generic_category().message(ENOSPC);
  if (said.find(reason) == std::string_view::npos && (unknown || room.available >= 64 << 10)) {
    return "";
  }
  return format("; the disk is full ({}): make room, then Continue", folder);
}

}  // namespace

void FinetuneJobs::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || task_; });
    if (stopping_) {
      return;
    }
    const auto task = std::exchange(task_, nullptr);
    const std::string id = active_;
    lock.unlock();
    try {
      task();
    } catch (const std::exception& error) {
      change(id, [&](JobState& job) {
        job.stage = JobStage::kFailed;
        job.message = error.what();
      });
    }
    change(id, [&](JobState& job) { job.ended = std::time(nullptr); });
    lock.lock();
    active_.clear();
  }
}

void FinetuneJobs::make(const std::string& id, const SlowWriter& write) {
  AtomicFileWriter rows(files(id).rows());
  const std::string message = write(rows, [this] { return should_stop(); });
  if (cancel_ && rows.offset() == 0) {
    change(id, [](JobState& job) { job.stage = JobStage::kCancelled; });
    return;
  }
  rows.commit();
  check_rows(id);
  change(id, [&](JobState& job) {
    job.stage = JobStage::kDraft;
    job.message = message;
  });
}

std::vector<std::string> FinetuneJobs::train_arguments(const JobState& job, bool resuming) const {
  const JobFiles files{options_.folder / job.id};
  // Few rows are few steps: a curve needs points.
  const bool few = job.check.is_object() && job.check.value("rows", 0) <= kFewRows;
  std::vector<std::string> arguments = {options_.train_program.string(),
                                        "finetune",
                                        files.rows().string(),
                                        "--output",
                                        files.run().string(),
                                        "--json",
                                        "--set",
                                        few ? "train.log_every=1" : "train.log_every=5"};
  const std::string base = job.settings.value("base", "scratch");
  if (base == "scratch") {
    arguments.insert(arguments.end(), {"--checkpoint", "none", "--model-config",
                                       job.settings.value("shape", "small")});
  } else if (base != "released") {
    arguments.insert(arguments.end(), {"--checkpoint", this->files(base).bundle().string()});
  }
  if (const auto epochs = job.settings.value("epochs", std::int64_t{0}); epochs > 0) {
    arguments.insert(arguments.end(), {"--set", format("train.epochs={}", epochs)});
  }
  if (resuming) {
    arguments.emplace_back("--resume");
  }
  return arguments;
}

void FinetuneJobs::train(const std::string& id, bool resuming) {
  JobState job = state(id);
  const JobFiles files = this->files(id);
  Outcome outcome = Outcome::kDone;
  if (resuming && is_running(job.process)) {  // of a server that was killed
    const ProcessMark mark = job.process;
    outcome = wait_for([mark] { return !is_running(mark); },
                       [mark](int number) { ::kill(-mark.id, number); });
  }
  JobProgress progress;
  progress.read(files.log());
  if (outcome == Outcome::kDone && !(progress.finished() && fs::exists(files.bundle()))) {
    outcome = run_child(id, train_arguments(job, resuming), files.log());
  }
  if (outcome == Outcome::kDone) {
    change(id, [](JobState& state) { state.stage = JobStage::kExporting; });
    outcome = run_child(id,
                        {options_.export_program.string(), "export", files.bundle().string(), "-o",
                         files.model().string()},
                        files.messages());
  }
  if (outcome == Outcome::kDone) {
    publish(id);
  } else if (outcome == Outcome::kCancelled) {
    change(id, [](JobState& state) {
      state.stage = JobStage::kCancelled;
      state.message = "cancelled; training can go on from its last checkpoint";
    });
  }  // kFailed was said where it was seen; kStopped is left for the next server
}

FinetuneJobs::Outcome FinetuneJobs::run_child(const std::string& id,
                                              const std::vector<std::string>& arguments,
                                              const fs::path& out) {
  const JobFiles files = this->files(id);
  std::error_code ignored;
  fs::remove(files.messages(), ignored);
  JobProcess child(
      {.arguments = arguments, .folder = files.folder, .out = out, .err = files.messages()});
  change(id, [&](JobState& job) { job.process = child.mark(); });
  const Outcome outcome = wait_for([&] { return child.ended().has_value(); },
                                   [&](int number) { child.signal(number); });
  const int status = child.ended().value_or(0);
  if (outcome != Outcome::kDone || status == 0) {
    return outcome;
  }
  const std::string program = fs::path(arguments.front()).filename().string();
  const std::string said = last_message(files.messages());
  change(id, [&](JobState& job) {
    job.stage = JobStage::kFailed;
    job.message = format("{} {}{}{}{}", program, ending_text(status), said.empty() ? "" : ": ",
                         said, disk_hint(files.folder, said));
  });
  return Outcome::kFailed;
}

// Asks once by SIGINT, upon which needle-train saves, then insists.
FinetuneJobs::Outcome FinetuneJobs::wait_for(const std::function<bool()>& ended,
                                             const std::function<void(int)>& signal) {
  std::optional<Clock::time_point> asked;
  bool insisted = false;
  while (!ended()) {
    if (should_stop() && !asked) {
      asked = Clock::now();
      signal(SIGINT);
    } else if (asked && !insisted &&
               Clock::now() - *asked > std::chrono::milliseconds(options_.patience_ms)) {
      insisted = true;
      signal(SIGKILL);
    }
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kPoll);
  }
  if (!asked) {
    return Outcome::kDone;
  }
  return cancel_ ? Outcome::kCancelled : Outcome::kStopped;
}

// Under the job's name, or the first like it that is free: a model that serves is not replaced.
void FinetuneJobs::publish(const std::string& id) {
  const JobState job = state(id);
  std::string name = job.name;
  for (int i = 2; fs::exists(options_.models / (name + ".needle")); ++i) {
    name = format("{}-{}", job.name.substr(0, 60), i);
  }
  write_file_atomic(options_.models / (name + ".needle"), read_file(files(id).model()));
  change(id, [&](JobState& state) {
    state.stage = JobStage::kDone;
    state.model = name;
  });
}

}  // namespace needle
