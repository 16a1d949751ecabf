// The loop around a training step: data, records, validation, checkpoints, stopping and going on.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/core/json.h"
#include "needle/core/prefetch.h"
#include "needle/data/contrastive.h"
#include "needle/data/packed_dataset.h"
#include "needle/data/sampler.h"
#include "needle/model/needle.h"
#include "needle/text/tokenizer.h"
#include "needle/train/checkpoint_folder.h"
#include "needle/train/data_parallel.h"
#include "needle/train/metrics.h"
#include "needle/train/optimizer.h"
#include "needle/train/ranks.h"
#include "needle/train/run_config.h"
#include "needle/train/train_state.h"
#include "needle/train/train_step.h"

namespace needle {

struct TrainingData {
  PackedDataset dataset;
  std::vector<std::int64_t> rows;  // those to train on, at least one
  std::string hash;                // of their content: a resumed run must find the same
};

// What surrounds a run. Every member may be empty.
struct TrainerHooks {
  // Scores of the model as it is now. Interrupted: should_stop says so; the resumed run validates.
  std::function<std::vector<Scalar>()> validate;
  std::string best_score;             // which of them decides what is best
  bool lower_is_better = false;       // e.g. perplexity
  std::function<bool()> should_stop;  // asked after every step
  std::function<void(const Json& record)>
      on_record;           // steps that are logged, validations, checkpoints
  Ranks* ranks = nullptr;  // several processes train; outlives the trainer. Null: one
};

struct TrainSummary {
  std::int64_t steps = 0;
  std::int64_t skipped = 0;
  std::int64_t rollbacks = 0;
  double last_loss = 0.0;  // of the last step that was not skipped; NaN if there was none
  double seconds = 0.0;
  double tokens_per_second = 0.0;
  std::optional<double> best_score;
  std::filesystem::path last_checkpoint;
  std::filesystem::path best_checkpoint;  // the last one if nothing was validated

  Json to_json() const;
};

// Writes into config.output: checkpoints/ (with everything that a resumed run needs),
// metrics.jsonl, tensorboard/, loss.svg. On one CPU thread a run that was stopped and resumed, even
// by kill -9, ends bit-equal to one that was not.
//
// On several ranks every rank runs the same trainer over the same data and takes its slice of each
// batch; the first one writes, records and speaks. Losses and checkpoints are those of one process,
// to rounding, and any number of ranks may go on (with batch_scope "global").
class Trainer {
 public:
  // `model` lies on its device already and has its initial parameters. Throws ConfigError if a
  // setting is out of range.
  Trainer(Needle model, Tokenizer tokenizer, const RunConfig& config, TrainingData data,
          TrainerHooks hooks);

  // Goes to the newest checkpoint that is whole, with a warning for each damaged one; false if
  // there is none. Throws DataError if the data has changed since, ConfigError as check_same_run.
  bool resume();

  // Until the last step. Throws Interrupted after saving when should_stop says so. A loss that
  // spikes (spike.h) or max_bad_steps that had to be skipped in a row take the run back to its last
  // good checkpoint, from where it goes on with the data that follows and lower rates. Throws Error
  // when that has happened too often, is turned off, or there is no checkpoint to go back to; the
  // last good one stays. A run that is complete already returns at once.
  TrainSummary run();

  const TrainState& state() const { return state_; }
  std::int64_t steps_per_epoch() const;
  std::int64_t batches_per_epoch() const;

 private:
  void begin();
  std::int64_t find_micro_batch();
  std::int64_t rows_of_a_rank() const;
  std::vector<std::int64_t> longest_rows(std::int64_t count) const;
  std::int64_t planned_steps();
  std::int64_t steps_in(double seconds);
  struct StepBatches {
    std::vector<Batch> batches;  // this rank's
    StepCounts counts;           // of all ranks
  };
  struct StepData {
    StepBatches step;
    std::optional<ContrastiveBatch> pairs;  // of a retrieval step
    SamplerState sampler;                   // behind this step's batches
  };
  // A step that was asked for.
  struct Launched {
    SamplerState sampler;              // as above
    std::optional<StepReport> report;  // nothing where the device is not waited for
    double wait_seconds = 0.0;         // for its data
    double seconds = 0.0;              // all that asking for it took
  };
  StepBatches next_batches(Sampler& sampler) const;
  StepData next_data(Sampler& sampler, std::int64_t step) const;
  StepData wait_for_data();
  std::optional<StepReport> run_step(std::int64_t step, const StepBatches& batches,
                                     const ContrastiveBatch* pairs);
  void add_slice(std::span<const std::int64_t> rows, StepBatches& step) const;
  SamplerOptions sampler_options() const;
  std::optional<CheckpointRef> agreed_checkpoint(
      const std::function<std::optional<CheckpointRef>(std::vector<std::string>& warnings)>& find)
      const;
  void load_checkpoint(const std::filesystem::path& folder);
  void make_optimizer();
  void make_train_step();
  void mark_best_again();
  OptimizerConfig optimizer_config() const;
  std::int64_t world_size() const { return hooks_.ranks != nullptr ? hooks_.ranks->world() : 1; }
  bool is_first() const { return hooks_.ranks == nullptr || hooks_.ranks->is_first(); }
  [[noreturn]] void throw_stopped();
  bool advance(bool last);
  void launch();
  bool may_launch_another() const;
  void note(const Launched& launched);
  void validate();
  void save();
  void validate_and_save_when_due();
  bool go_back_if_bad();
  std::optional<CheckpointRef> last_good_checkpoint() const;
  void roll_back(const CheckpointRef& checkpoint, const std::string& reason);
  static bool is_due(std::int64_t every, std::int64_t step, const SamplerState& sampler);
  void announce(Json record) const;
  Json config_json() const;

  Needle model_;
  Tokenizer tokenizer_;
  RunConfig config_;
  TrainingData data_;
  TrainerHooks hooks_;
  torch::Device device_;
  CheckpointFolder checkpoints_;
  std::optional<ContrastiveSampler> pairs_;
  std::unique_ptr<DataParallel> replicas_;  // null: one process
  std::optional<Optimizer> optimizer_;
  std::optional<TrainStep> train_step_;
  std::optional<MetricsWriter> metrics_;
  TrainState state_;
  std::deque<Launched> launched_;  // not noted yet
  std::int64_t saved_step_ = -1;
  std::string complaint_;  // what was wrong with the last step that was not good
  double last_loss_;
  double seconds_since_log_ = 0.0;
  std::int64_t tokens_since_log_ = 0;
  std::optional<Prefetch<StepData>> feed_;  // reads members above: ends before they do
};

}  // namespace needle
