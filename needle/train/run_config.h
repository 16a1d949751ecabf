// Everything that a training run can be told, composed of the settings of those who use them.
//
// A config is a JSON file, or one of the files in configs/ by name ("pretrain", "tiny"), which are
// built into the program. Its "model" may be an object or name another config ("model/small" or
// "small", or a path beside the file).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/fields.h"
#include "needle/data/prepare.h"
#include "needle/data/split.h"
#include "needle/model/init.h"
#include "needle/quant/model_config.h"
#include "needle/text/tokenizer_trainer.h"
#include "needle/train/device.h"
#include "needle/train/optimizer.h"
#include "needle/train/ranks.h"
#include "needle/train/spike.h"
#include "needle/train/train_step.h"
#include "needle/train/validate.h"

namespace needle {

struct TokenizerSource {
  std::filesystem::path file;
  std::vector<std::filesystem::path> texts;
  TokenizerTrainerConfig train;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("file", self.file, "SentencePiece model to use; empty: train one");
    visit("texts", self.texts, "JSONL files to train it on; empty: the training data");
    visit("train", self.train, "How it is trained");
  }
};

struct DataConfig {
  std::vector<std::filesystem::path> train;
  std::vector<std::filesystem::path> validation;
  std::int64_t validation_rows = 64;
  std::filesystem::path cache;
  PrepareConfig rows;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("train", self.train, "JSONL files to train on, plain or gzip");
    visit("validation", self.validation,
          "JSONL files to validate on; empty: rows held out of the training data");
    visit("validation_rows", self.validation_rows,
          "How many rows are held out; 0: none, and no validation");
    visit("cache", self.cache, "Folder for encoded data sets; empty: datasets in NEEDLE_HOME");
    visit("rows", self.rows, "How rows are read, encoded and packed");
  }
};

// What batch_size counts when several ranks train together.
enum class BatchScope { kGlobal, kRank };
inline constexpr EnumNames<BatchScope, 2> kBatchScopeNames{
    {{{BatchScope::kGlobal, "global"}, {BatchScope::kRank, "rank"}}}};
template <>
struct EnumTable<BatchScope> {
  static constexpr const auto& value = kBatchScopeNames;
};

struct TrainConfig {
  std::int64_t batch_size = 32;
  BatchScope batch_scope = BatchScope::kGlobal;
  std::int64_t grad_accumulation = 1;
  CountOrAuto micro_batch;
  std::int64_t epochs = 1;
  std::int64_t max_steps = 0;
  double time_budget_s = 0.0;
  std::uint64_t seed = 42;
  std::string device = "auto";
  ComputeDtype compute_dtype = ComputeDtype::kAuto;
  AttentionKernel attention = AttentionKernel::kFused;
  bool activation_checkpointing = false;
  double dropout = 0.0;
  bool record_steps = false;
  std::int64_t contrastive_rows = 64;
  std::int64_t log_every = 10;
  std::int64_t checkpoint_every = 0;
  std::int64_t keep_checkpoints = 3;
  std::int64_t validate_every = 0;
  std::int64_t max_bad_steps = 10;
  SpikeConfig spike;
  ExchangeKind exchange = ExchangeKind::kAuto;
  double rank_silence_s = 30.0;
  double rank_progress_s = 1800.0;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("batch_size", self.batch_size, "Rows in one batch; a packed row holds several examples");
    visit(
        "batch_scope", self.batch_scope,
        "Several ranks: global shares batch_size rows out, so that the run learns the same on any "
        "number of them; rank gives each as many, and as in the reference Adam's peak rate grows "
        "with their number, Muon's with its root");
    visit("grad_accumulation", self.grad_accumulation,
          "Batches whose gradients add up to one step");
    visit("micro_batch", self.micro_batch,
          "Rows in one forward and backward pass, on each rank; a batch is made of such parts, and "
          "learns the same to rounding (dropout draws other masks). 0: all at once; auto: the most "
          "that fit into memory, found before the first step");
    visit("epochs", self.epochs, "Passes over the data");
    visit("max_steps", self.max_steps, "Length in steps; above 0 it replaces epochs");
    visit("time_budget_s", self.time_budget_s,
          "Length in seconds of training steps; above 0 it replaces both: the speed is measured on "
          "a few steps, undone "
          "afterwards, and fixes the number of steps once");
    visit("seed", self.seed, "Initial weights, order of the data, dropout, retrieval pairs");
    visit("device", self.device,
          "auto, cpu, cuda, cuda:1, mps, xpu or the name of a plug-in's (docs/devices.md)");
    visit("compute_dtype", self.compute_dtype,
          "Type of activations: auto, float32 or bfloat16; parameters stay float32");
    visit(
        "attention", self.attention,
        "layers: fastest on a CPU, each gated attention one function (dropout and bfloat16 take "
        "ranges); ranges: packed rows segment by segment on a CPU; fused: the library's, which "
        "other devices take; segments: variable-length flash attention for packed rows on CUDA in "
        "bfloat16, elsewhere fused; exact: as written in the specification; equal within rounding");
    visit("activation_checkpointing", self.activation_checkpointing,
          "With attention layers: compute what a layer keeps again in the backward pass; less "
          "memory, more time, the same numbers");
    visit("dropout", self.dropout, "Rate on the output of each sub-layer");
    visit("record_steps", self.record_steps,
          "On a device with graphs (CUDA): record a step once and repeat it in one call; every "
          "batch is "
          "padded to the longest row that may come, so that all have one shape");
    visit("contrastive_rows", self.contrastive_rows, "Query-tool pairs of a retrieval step");
    visit("log_every", self.log_every,
          "Steps between two lines on the console; metrics.jsonl has every step");
    visit("checkpoint_every", self.checkpoint_every,
          "Steps between two checkpoints; 0: at the end of each epoch");
    visit("keep_checkpoints", self.keep_checkpoints,
          "How many of the newest stay; the best stays besides");
    visit("validate_every", self.validate_every,
          "Steps between two validations; 0: at the end of each epoch");
    visit("max_bad_steps", self.max_bad_steps,
          "Steps in a row that may be skipped because a number is not finite");
    visit("spike", self.spike, "Spikes of the loss: roll back, slower, go on");
    visit("exchange", self.exchange,
          "Several ranks: auto: through shared memory if all are on the CPU of one host, else "
          "through Gloo (CUDA: NCCL); shared: so or not at all; gloo: never through shared memory");
    visit("rank_silence_s", self.rank_silence_s,
          "Several ranks: one without a sign of life for so long is given up, and all stop");
    visit("rank_progress_s", self.rank_progress_s,
          "Several ranks: one that lives but lets the others wait for so long is given up");
  }
};

struct RunConfig {
  std::filesystem::path output = "runs/needle";
  ModelConfig model;
  InitMethod init = InitMethod::kCopy;
  TokenizerSource tokenizer;
  DataConfig data;
  SplitConfig split;
  TrainStepConfig step;
  OptimizerConfig optimizer;
  TrainConfig train;
  ValidateConfig validate;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("output", self.output, "Run folder: checkpoints, metrics, loss curve");
    visit("model", self.model, "Shape of the network; vocab_size follows the tokenizer");
    visit("init", self.init, "How a new model starts: copy or reference");
    visit("tokenizer", self.tokenizer, "Where the tokenizer comes from");
    visit("data", self.data, "What is trained on");
    visit("split", self.split, "Finetuning: examples held out per tool");
    visit("step", self.step, "Losses and quantisation of a step");
    visit("optimizer", self.optimizer, "Muon, AdamW, schedule, clipping");
    visit("train", self.train, "The loop");
    visit("validate", self.validate, "What a validation measures");
  }

  // Throws ConfigError naming `where` and the field: sizes, counts and rates out of range.
  void check(std::string_view where) const;
};

// The prompt that a model of this run is saved with. Packed rows are kept short, because attention
// costs the square of their length; a served prompt is a single example and may be as long as
// model.max_seq_len (answers half of it).
PromptConfig serving_prompt(const RunConfig& config);

// Names of the configs that are built in: "pretrain", "model/small", ...
std::vector<std::string> embedded_config_names();

// A model shape by name or path: "small", "configs/model/small.json".
ModelConfig load_model_config(const std::string& source);

// `source`: a path or a name; `overrides`: "a.b=c" each. Fields that neither names keep the values
// of `defaults`. Throws FileError or ConfigError; an unknown name is answered with the known ones.
RunConfig load_run_config(const std::string& source, std::span<const std::string> overrides,
                          const RunConfig& defaults = {});

// A run is only continued with the settings that it began with: throws ConfigError listing each
// field that decides numbers and differs between the two. Lengths of intervals, devices, folders
// and the like may differ.
void check_same_run(const RunConfig& saved, const RunConfig& now);

// docs/config.md: every field with type, default and meaning.
std::string config_documentation();

}  // namespace needle
