// One finetuning that the page asked for: what is known of it, and the folder where all of it lies,
// so that it outlives page and server.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "needle/core/enum_names.h"
#include "needle/core/json.h"
#include "needle/server/job_process.h"

namespace needle {

enum class JobStage {
  kMaking,     // its rows are being asked for
  kDraft,      // its rows can be looked at and added to
  kTraining,   // needle-train runs
  kExporting,  // needle-export runs
  kDone,
  kFailed,     // `message` says why; training can go on from its last checkpoint
  kCancelled,  // by its user
};
inline constexpr EnumNames<JobStage, 7> kJobStageNames{{{{JobStage::kMaking, "making"},
                                                         {JobStage::kDraft, "draft"},
                                                         {JobStage::kTraining, "training"},
                                                         {JobStage::kExporting, "exporting"},
                                                         {JobStage::kDone, "done"},
                                                         {JobStage::kFailed, "failed"},
                                                         {JobStage::kCancelled, "cancelled"}}}};

struct JobState {
  std::string id;
  std::string name;  // of the model to be
  JobStage stage = JobStage::kDraft;
  std::string message;       // for people; "" if there is nothing to say
  std::int64_t created = 0;  // Unix seconds, as all times
  std::int64_t started = 0;
  std::int64_t ended = 0;
  Json source;          // {"kind","count",...}: where the rows come from; never a key
  Json settings;        // {"base","shape","epochs"}; null before the start
  Json check;           // of the rows (needle/data/check.h)
  ProcessMark process;  // the child that runs or ran last
  std::string model;    // under this name it is served; "" before the end

  // Throws FormatError for what is no job.
  static JobState from_json(const Json& json);
  Json to_json() const;
  bool active() const;  // a thread or a child works on it
};

// job.json, rows.jsonl, tools.json, log.jsonl and messages.txt (of the children), run/ (of
// needle-train), model.needle.
struct JobFiles {
  std::filesystem::path folder;

  std::filesystem::path state() const { return folder / "job.json"; }
  std::filesystem::path rows() const { return folder / "rows.jsonl"; }
  std::filesystem::path tools() const { return folder / "tools.json"; }
  std::filesystem::path log() const { return folder / "log.jsonl"; }
  std::filesystem::path messages() const { return folder / "messages.txt"; }
  std::filesystem::path run() const { return folder / "run"; }
  std::filesystem::path bundle() const { return folder / "run" / "bundle"; }
  std::filesystem::path model() const { return folder / "model.needle"; }
};

// What may become a file's name: a letter or a digit, then at most 63 of these, '.', '_', '-'.
bool is_file_name(std::string_view name);

// What a program said last on stderr: its line "error: ...", else its last line; "" if nothing.
std::string last_message(const std::filesystem::path& messages);

}  // namespace needle
