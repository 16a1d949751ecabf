#include "needle/server/finetune_jobs.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/data/check.h"
#include "needle/server/api_error.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

ApiError conflict(const std::string& message, std::string code) {
  return ApiError(409, message, {.code = std::move(code)});
}

// A full disk is no fault of the program: said with a status of its own.
[[noreturn]] void rethrow_file_error(const FileError& error) {
  const std::string message = error.what();
  const bool full = message.find(std::generic_category().message(ENOSPC)) != std::string::npos;
  throw ApiError(full ? 507 : 500, message, {.code = full ? "disk_full" : ""});
}

}  // namespace

FinetuneJobs::FinetuneJobs(JobsOptions options) : options_(std::move(options)) {
  if (!fs::is_directory(options_.folder)) {
    return;  // nothing is written before it is needed
  }
  try {
    const std::lock_guard lock(mutex_);
    open_folder();
  } catch (const Error& error) {
    log_warning("finetuning is not possible: {}", error.what());
  }
}

FinetuneJobs::~FinetuneJobs() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (worker_.joinable()) {
    worker_.join();
  }
  if (lock_ >= 0) {
    ::close(lock_);
  }
}

void FinetuneJobs::open_folder() {
  if (lock_ >= 0) {
    return;
  }
  fs::create_directories(options_.folder);
  fs::create_directories(options_.models);
  const fs::path path = options_.folder / ".lock";
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (descriptor < 0 || ::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    if (descriptor >= 0) {
      ::close(descriptor);
    }
    if (descriptor >= 0 && reason == EWOULDBLOCK) {
      throw conflict(format("another needle-serve uses {}; give this one a folder of its own with "
                            "--workspace",
                            options_.folder),
                     "workspace_in_use");
    }
    throw FileError(format("{}: {}", path, std::generic_category().message(reason)));
  }
  lock_ = descriptor;
  load_states();
  worker_ = std::thread([this] { work(); });
}

void FinetuneJobs::load_states() {
  for (const auto& entry : fs::directory_iterator(options_.folder)) {
    const JobFiles files{entry.path()};
    if (!fs::exists(files.state())) {
      continue;
    }
    try {
      JobState job = JobState::from_json(read_json_file(files.state()));
      job.id = entry.path().filename().string();
      remove_leftovers(files.folder);
      if (job.stage == JobStage::kMaking) {
        job.stage = JobStage::kFailed;
        job.message =
            "the server ended while the rows were being asked for; its key was kept in "
            "memory only. Ask again";
      } else if (job.active() && active_.empty()) {
        active_ = job.id;
        task_ = [this, id = job.id] { train(id, /*resuming=*/true); };
      }
      jobs_[job.id] = std::move(job);
    } catch (const Error& error) {
      log_warning("{}: left out: {}", files.state(), error.what());
    }
  }
}

JobState& FinetuneJobs::find(const std::string& id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) {
    throw ApiError(404, "no such finetuning; GET /playground/jobs lists them",
                   {.code = "job_not_found"});
  }
  return found->second;
}
const JobState& FinetuneJobs::find(const std::string& id) const {
  return const_cast<FinetuneJobs*>(this)->find(id);
}

void FinetuneJobs::change(const std::string& id, const std::function<void(JobState&)>& edit) {
  const std::lock_guard lock(mutex_);
  JobState& job = find(id);
  edit(job);
  try {
    write_json_file(JobFiles{options_.folder / id}.state(), job.to_json());
  } catch (const FileError& error) {
    log_warning("{}", error.what());  // what is in memory goes on; the disk may get room again
  }
}

void FinetuneJobs::prepare(std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  try {
    open_folder();
  } catch (const FileError& error) {
    rethrow_file_error(error);
  } catch (const fs::filesystem_error& error) {
    throw ApiError(500, error.what());
  }
  const std::uint64_t room = fs::space(options_.folder).available;
  if (room < options_.min_free_bytes + bytes) {
    throw ApiError(507,
                   format("{}: {} MB are free on this disk, {} MB are needed; make room and try "
                          "again",
                          options_.folder, room >> 20, (options_.min_free_bytes + bytes) >> 20),
                   {.code = "disk_full"});
  }
}

JobState FinetuneJobs::new_job(const std::string& name, Json source, std::string_view tools) {
  prepare();
  const std::lock_guard lock(mutex_);
  JobState job;
  job.name = is_file_name(name) ? name : "finetuned";
  job.created = std::time(nullptr);
  job.source = std::move(source);
  do {
    job.id = format("{}-{}", job.created, ++made_);
  } while (fs::exists(options_.folder / job.id));
  const JobFiles files{options_.folder / job.id};
  fs::create_directory(files.folder);
  try {
    write_file_atomic(files.tools(), tools);
    write_json_file(files.state(), job.to_json());
  } catch (const FileError& error) {
    fs::remove_all(files.folder);
    rethrow_file_error(error);
  }
  jobs_[job.id] = job;
  return job;
}

void FinetuneJobs::check_rows(const std::string& id) {
  const CheckReport report =
      check_calls_file(JobFiles{options_.folder / id}.rows(), {.max_findings = 20});
  if (report.rows == 0) {
    const std::string reason =
        report.findings.empty() ? "the file is empty" : report.findings.front().place.text();
    throw ApiError(400, format("no row that can be trained on: {}", reason), {.param = "rows"});
  }
  change(id, [&](JobState& job) { job.check = report.to_json(); });
}

std::string FinetuneJobs::create(const std::string& name, Json source, std::string_view tools,
                                 const Writer& write) {
  const std::string id = new_job(name, std::move(source), tools).id;
  try {
    AtomicFileWriter rows(JobFiles{options_.folder / id}.rows());
    write(rows);
    rows.commit();
    check_rows(id);
  } catch (const FileError& error) {
    remove(id);
    rethrow_file_error(error);
  } catch (...) {
    remove(id);
    throw;
  }
  return id;
}

std::string FinetuneJobs::create_slowly(const std::string& name, Json source,
                                        std::string_view tools, SlowWriter write) {
  const std::string id = new_job(name, std::move(source), tools).id;
  try {
    begin(id, JobStage::kMaking, [this, id, write = std::move(write)] { make(id, write); });
  } catch (...) {
    remove(id);
    throw;
  }
  return id;
}

void FinetuneJobs::add_rows(const std::string& id, const std::vector<std::string>& lines) {
  prepare();
  if (state(id).stage != JobStage::kDraft) {
    throw conflict("rows can be added before training starts; begin again from this data",
                   "not_a_draft");
  }
  const fs::path path = files(id).rows();
  const std::string before = read_file(path);
  std::string text = before;
  if (!text.empty() && text.back() != '\n') {
    text += '\n';
  }
  for (const std::string& line : lines) {
    text += line + '\n';
  }
  try {
    write_file_atomic(path, text);
  } catch (const FileError& error) {
    rethrow_file_error(error);
  }
  check_rows(id);
}

void FinetuneJobs::begin(const std::string& id, JobStage stage, std::function<void()> work,
                         const Json& settings) {
  {
    const std::lock_guard lock(mutex_);
    find(id);
    if (!active_.empty()) {
      throw conflict(format("\"{}\" is at work; wait for its end or cancel it: one finetuning at a "
                            "time",
                            find(active_).name),
                     "busy");
    }
    active_ = id;
    cancel_ = false;
  }
  change(id, [&](JobState& job) {
    job.stage = stage;
    if (!settings.is_null()) {
      job.settings = settings;
    }
    job.message.clear();
    job.started = std::time(nullptr);
    job.ended = 0;
  });
  const std::lock_guard lock(mutex_);
  task_ = std::move(work);
  wake_.notify_all();
}

void FinetuneJobs::start(const std::string& id, const Json& settings) {
  prepare();
  if (state(id).stage != JobStage::kDraft) {
    throw conflict("this finetuning was started already; begin again from its data", "not_a_draft");
  }
  if (options_.train_program.empty() || options_.export_program.empty()) {
    throw ApiError(501,
                   "needle-train and needle-export were found neither beside needle-serve nor in "
                   "PATH; build them, or train elsewhere and upload the model",
                   {.code = "no_trainer"});
  }
  begin(
      id, JobStage::kTraining, [this, id] { train(id, /*resuming=*/false); }, settings);
}

void FinetuneJobs::resume(const std::string& id) {
  prepare();
  const JobState job = state(id);
  if ((job.stage != JobStage::kFailed && job.stage != JobStage::kCancelled) ||
      job.settings.is_null()) {
    throw conflict("only a training that failed or was cancelled can go on", "cannot_resume");
  }
  begin(id, JobStage::kTraining, [this, id] { train(id, /*resuming=*/true); });
}

void FinetuneJobs::cancel(const std::string& id) {
  const std::lock_guard lock(mutex_);
  find(id);
  if (active_ != id) {
    throw conflict("this finetuning is not at work", "not_running");
  }
  cancel_ = true;
}

void FinetuneJobs::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  find(id);
  if (active_ == id) {
    throw conflict("this finetuning is at work; cancel it first", "busy");
  }
  jobs_.erase(id);
  progress_.erase(id);
  std::error_code error;
  fs::remove_all(options_.folder / id, error);
}

Json FinetuneJobs::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<const JobState*> newest;
  for (const auto& [id, job] : jobs_) {
    newest.push_back(&job);
  }
  std::ranges::stable_sort(newest, std::ranges::greater(), &JobState::created);
  Json data = Json::array();
  for (const JobState* job : newest) {
    data.push_back({{"id", job->id},
                    {"name", job->name},
                    {"stage", kJobStageNames.name(job->stage)},
                    {"created", job->created},
                    {"rows", job->check.is_object() ? job->check.value("rows", 0) : 0},
                    {"model", job->model}});
  }
  return {{"data", std::move(data)}, {"active", active_}};
}

Json FinetuneJobs::show(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  Json json = find(id).to_json();
  json.erase("process");
  JobProgress& progress = progress_[id];
  progress.read(JobFiles{options_.folder / id}.log());
  json["progress"] = progress.to_json();
  return json;
}

JobFiles FinetuneJobs::files(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  return {options_.folder / find(id).id};
}

JobState FinetuneJobs::state(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  return find(id);
}

}  // namespace needle
