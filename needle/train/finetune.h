// Teach a model the user's own tools: from one JSONL file to a checked, comparable result
// (specification, section 10).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/eval/evaluate.h"
#include "needle/train/run_setup.h"
#include "needle/train/trainer.h"
#include "needle/train/validate.h"

namespace needle {

struct FinetuneOptions {
  std::string data;        // JSONL of function-call rows
  std::string checkpoint;  // a checkpoint, a run, a needle.pkl; "none": from scratch; empty:
                           // released weights
  std::string model_config = "small";  // from scratch: shape, by name or path
  std::string
      tokenizer;  // for a needle.pkl without one beside it; from scratch: instead of training one
  std::string config;                  // path or name; empty: what suits the checkpoint
  std::vector<std::string> overrides;  // "a.b=c"
  std::string output;                  // run folder; empty: that of the config
  bool resume = false;
  bool dry_run = false;
  std::function<bool(const std::string& question)> confirm;  // asked before a download; empty: no
  RankEnvironment environment;  // one process unless told otherwise; after a restart: resumes
  std::function<bool()> should_stop;
  std::function<void(const Json& record)> on_record;
  ExportedEngine exported_engine;  // answers queries (validate.generate_with); may be empty
};

struct FinetuneResult {
  RunPlan plan;
  TrainSummary summary;            // empty after a dry run
  std::optional<CallReport> base;  // on the test split; nothing from scratch
  CallReport finetuned;
  std::int64_t test_examples = 0;
  std::string table;             // both side by side, and per tool, as text
  std::filesystem::path bundle;  // checkpoint, tools, splits, report, README
  RunConfig config;
  bool is_first = true;  // of the ranks: the one that speaks
};

// Reads and checks the data, splits it per tool, evaluates the base, trains, keeps the checkpoint
// with the best F1 on single calls of the validation split, evaluates it, and writes RUN/bundle. No
// row is too few: with a single one the held-out splits are that row. Throws as pretrain; DataError
// for rows that cannot be trained on, with file and line.
FinetuneResult finetune(const FinetuneOptions& options);

}  // namespace needle
