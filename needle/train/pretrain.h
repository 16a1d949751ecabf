// Train a base model from a run config: tokenizer, data, model, loop, loss curve.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/train/run_setup.h"
#include "needle/train/trainer.h"
#include "needle/train/validate.h"

namespace needle {

struct PretrainOptions {
  std::string config = "pretrain";     // path or name of a run config
  std::vector<std::string> overrides;  // "a.b=c"
  std::vector<std::string> data;       // JSONL files; empty: those of the config
  std::string output;                  // run folder; empty: that of the config
  bool resume = false;
  bool dry_run = false;         // say what would happen, write nothing into the run folder
  RankEnvironment environment;  // one process unless told otherwise; after a restart: resumes
  std::function<bool()> should_stop;
  std::function<void(const Json& record)> on_record;
  ExportedEngine exported_engine;  // answers validations (validate.generate_with); may be empty
};

struct PretrainResult {
  RunPlan plan;
  TrainSummary summary;  // empty after a dry run
  RunConfig config;      // as it was in effect
  bool is_first = true;  // of the ranks: the one that speaks
};

// Throws ConfigError, DataError, FileError; Interrupted after saving; Error if too many steps had
// to be skipped.
PretrainResult pretrain(const PretrainOptions& options);

}  // namespace needle
