// What a run writes down: one record a step, one a validation, as JSONL for machines, as
// TensorBoard events, and as one console line with fixed keys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/train/tensorboard.h"

namespace needle {

// One optimiser step. A skipped step (loss or gradient not finite) has `skipped` set and whatever
// loss it saw.
struct StepRecord {
  std::int64_t step = 0;  // steps done, this one included
  std::int64_t total_steps = 0;
  double epoch = 0.0;
  double loss = 0.0;  // weighted cross-entropy + z-loss; the contrastive part apart, as the
                      // reference reports it
  double cross_entropy = 0.0;
  double z_loss = 0.0;
  std::optional<double> contrastive = std::nullopt;  // steps that computed it
  double adam_lr = 0.0;                              // the rates this step really used
  double muon_lr = 0.0;
  double grad_norm = 0.0;  // before clipping
  std::int64_t target_tokens = 0;
  bool skipped = false;
  std::int64_t skipped_total = 0;  // in the whole run so far
  double tokens_per_second = 0.0;  // source and target tokens, padding left out
  // Of the step's products (train/flops.h): their rate as a share of what large products reach on
  // this device ("model FLOP utilisation"). 0: not measured.
  double utilization = 0.0;
  double data_wait_ms = 0.0;  // that this step waited for its batch
  double seconds = 0.0;       // of training, over the whole run

  // Keys as in metrics.jsonl. `seconds`, `tokens_per_second`, `utilization` and `data_wait_ms` are
  // the only ones that differ between equal runs.
  Json to_json() const;
  std::string console_line() const;  // step=20/400 epoch=0.52 loss=3.1416 ...
};

// Scores of one validation, e.g. {"perplexity", 3.2}; names are the keys of the JSON record.
struct ValidationRecord {
  std::int64_t step = 0;
  std::vector<Scalar> scores;
  double seconds = 0.0;  // that it took

  Json to_json() const;
  std::string console_line() const;
};

// The run went back to the checkpoint of `step`. What was recorded between `step` and `from_step`
// stays in metrics.jsonl, above this record; step numbers begin again below it.
struct RollbackRecord {
  std::int64_t step = 0;
  std::int64_t from_step = 0;
  std::string reason;
  std::int64_t rollbacks = 0;  // of the run so far, this one included
  double lr_scale = 1.0;       // of the schedule's rates, while steps are below lr_scale_until
  std::int64_t lr_scale_until = 0;

  Json to_json() const;
};

// Appends to RUN/metrics.jsonl and RUN/tensorboard/. Not thread-safe. Throws FileError, e.g. on a
// full disk.
class MetricsWriter {
 public:
  // What was recorded after `resume_step`, counted behind the last of `rollbacks` roll-backs, is
  // dropped from the file: the resumed run writes it again. A last line that a killed process left
  // incomplete goes too.
  MetricsWriter(const std::filesystem::path& run_folder, std::int64_t resume_step,
                std::int64_t rollbacks = 0);

  void write(const StepRecord& record);
  void write(const ValidationRecord& record);
  void write(const RollbackRecord& record);

 private:
  void write_line(const Json& record);
  std::filesystem::path path_;
  std::ofstream file_;
  TensorBoardWriter tensorboard_;  // a new one after a roll-back
};

// Every complete record of RUN/metrics.jsonl; empty if there is no such file.
std::vector<Json> read_metrics(const std::filesystem::path& run_folder);

// RUN/loss.svg from RUN/metrics.jsonl: training loss (raw and smoothed) and validation loss (the
// logarithm of the perplexities). Returns its path.
std::filesystem::path write_loss_chart(const std::filesystem::path& run_folder,
                                       const std::string& title);

}  // namespace needle
