// What both flows do before their first step: the run folder, the tokenizer, a new model, the data.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/exit_code.h"
#include "needle/core/json.h"
#include "needle/data/example.h"
#include "needle/model/needle.h"
#include "needle/text/tokenizer.h"
#include "needle/train/rank_environment.h"
#include "needle/train/ranks.h"
#include "needle/train/run_config.h"
#include "needle/train/trainer.h"
#include "needle/train/validate.h"

namespace needle {

// Meets the other processes of the run, if `environment` tells of any, and sets config.train.device
// to this rank's own. Ranks but the first log warnings only. Null: one process.
std::unique_ptr<Ranks> join_ranks(RunConfig& config, const RankEnvironment& environment);

// `body`; what it throws is told to the other ranks first, so that they stop with this reason. An
// Interrupted is not: all ranks agreed on it.
template <typename Body>
auto with_failure_report(Ranks* ranks, const Body& body) {
  try {
    return body();
  } catch (const Interrupted&) {
    throw;
  } catch (const std::exception& error) {
    if (ranks != nullptr) {
      ranks->report_failure(std::string(message_of(error)));
    }
    throw;
  }
}

// Throws ConfigError if a run lies there already and is not to be resumed.
void check_run_folder(const std::filesystem::path& folder, bool resume);

// config.tokenizer.file, or one trained on `texts` (JSONL files) with the model's vocabulary size.
// A resumed run takes the one it began with. Nothing is written; `texts` empty and no file is a
// ConfigError. Several ranks: the first one makes it, all get it.
Tokenizer make_tokenizer(const RunConfig& config, std::span<const std::filesystem::path> texts,
                         bool resume, Ranks* ranks = nullptr);

// A model of the config's shape and vocabulary with initial parameters.
Needle make_model(const RunConfig& config);
// Puts it where and how the config says.
void place_model(Needle& model, const TrainConfig& train);

struct HeldOut {
  std::vector<std::int64_t> train;  // both ascending
  std::vector<std::int64_t> validation;
};
// `count` rows drawn by `seed`, at most a tenth of all.
HeldOut hold_out_rows(std::int64_t row_count, std::int64_t count, std::uint64_t seed);

struct RunData {
  TrainingData train;
  ValidationData validation;
};

// The files that config.data names, encoded (or opened, if that was done before). Several ranks:
// one of each host encodes, the others open.
RunData load_run_data(const RunConfig& config, const Tokenizer& tokenizer, Ranks* ranks = nullptr);

// Rows that were read before: finetuning.
RunData make_run_data(const RunConfig& config, const Tokenizer& tokenizer,
                      std::span<const CallExample> train, std::span<const CallExample> validation);

// What a run would do, without doing it.
struct RunPlan {
  std::int64_t parameters = 0;
  std::int64_t examples = 0;
  std::int64_t rows = 0;
  std::int64_t source_tokens = 0;
  std::int64_t target_tokens = 0;
  std::int64_t steps_per_epoch = 0;
  std::int64_t steps = 0;         // 0: as many as fit into the time budget
  std::int64_t memory_bytes = 0;  // estimate
  std::string device;

  Json to_json() const;
  std::string text() const;
};
RunPlan plan_run(const RunConfig& config, const Needle& model, const TrainingData& data,
                 std::int64_t steps_per_epoch);

}  // namespace needle
