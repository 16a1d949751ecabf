// One optimisation step: the recipe. Logging, saving and evaluating live around it, in the trainer.
// Specification, sections 5 to 7.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/data/batch.h"
#include "needle/model/needle.h"
#include "needle/train/data_parallel.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/loss.h"
#include "needle/train/optimizer.h"

namespace needle {

struct QuantConfig {
  std::int64_t every = 100;
  FakeQuant kernels = FakeQuant::kInt4;
  FakeQuant embedding = FakeQuant::kNone;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("every", self.every,
          "Train through quantised weights at every so-manieth step, 1: every step, 0: never");
    visit("kernels", self.kernels, "Dense kernels on those steps: int4, int8 or none");
    visit("embedding", self.embedding, "The embedding on those steps: int4, int8 or none");
  }
};

struct TrainStepConfig {
  LossConfig loss;
  QuantConfig quant;
  std::int64_t contrastive_every = 1000;
  bool weighted = true;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("weighted", self.weighted,
          "Weigh targets by token class, where the data has classes (pretraining data has none)");
    visit("loss", self.loss, "Loss weights");
    visit("quant", self.quant, "Quantisation-aware training");
    visit("contrastive_every", self.contrastive_every,
          "Add the retrieval loss at every so-manieth step (not at step 0); 0: never");
  }
};

struct StepReport {
  std::int64_t step = 0;
  double loss = 0.0;                  // text loss: cross_entropy + z
  double cross_entropy = 0.0;         // weighted
  double z = 0.0;                     // times its weight
  std::optional<double> contrastive;  // unweighted; on contrastive steps
  double grad_norm = 0.0;             // before clipping
  double lr_adam = 0.0;               // the rates of this update
  double lr_muon = 0.0;
  double flops = 0.0;              // of the step's products (train/flops.h)
  std::int64_t source_tokens = 0;  // non-pad
  std::int64_t target_tokens = 0;
  bool quantized = false;  // the step went through quantised weights
  bool skipped =
      false;  // a loss or gradient was not finite: neither parameters nor optimiser changed
  std::string skip_reason;  // "the loss is nan"
  bool stop = false;        // some rank wants to stop (DataParallel::want_stop)
};

// What the losses of a step are divided by: counts over all ranks and micro-batches.
struct StepCounts {
  std::int64_t target_tokens = 0;  // non-pad
  std::int64_t positions = 0;      // of the decoder, padding included
};

// With step.contrastive_every = `every`: not at step 0; 0: never.
bool is_contrastive_step(std::int64_t every, std::int64_t step);

// Refers to the model, the optimiser and the replicas; all must outlive it. Not thread-safe.
class TrainStep {
 public:
  // Throws ConfigError on a setting out of range. `seed` and `rank` decide the dropout masks,
  // together with the step. `replicas`: several ranks share each batch; `optimizer` is then the one
  // that it made.
  TrainStep(Needle model, Optimizer& optimizer, const TrainStepConfig& config, torch::Device device,
            std::uint64_t seed, std::uint64_t rank = 0, DataParallel* replicas = nullptr);

  bool is_contrastive_step(std::int64_t step) const;  // then run() wants a contrastive batch
  bool is_quantized_step(std::int64_t step) const;

  // One update from one or more micro-batches. Accumulation follows the rule "as if it were one
  // batch": each micro-batch's cross-entropy is divided by the non-pad targets of all of them and
  // its z-loss by the positions of all of them, and the gradients add up. (The reference's rule for
  // several devices differs: each divides by its own tokens, then the gradients are averaged.)
  // `contrastive`: null leaves that loss out, also on a contrastive step (a data set without
  // positive tools). Everything random follows from seed, rank and `step` alone. Deterministic on a
  // CPU with one thread. The model is in training mode afterwards. Waits for the device once.
  // On several ranks: `micro_batches` is this rank's part (none: it has no row of this step),
  // `counts` is needed, and the report is that of all ranks together, the same on each; retrieval
  // losses are averaged over ranks. Throws as Ranks.
  StepReport run(std::int64_t step, std::span<const Batch> micro_batches,
                 const ContrastiveBatch* contrastive = nullptr, const StepCounts* counts = nullptr);

  // The same without waiting for the device: clipping, and skipping a step whose numbers are not
  // finite, are left to it. finish() waits for the report of the first step that has none yet; all
  // are to be read before the parameters or the optimiser's state are looked at. On devices other
  // than the CPU, in one process.
  bool can_run_ahead() const { return !device_.is_cpu() && replicas_ == nullptr; }
  void run_ahead(std::int64_t step, std::span<const Batch> micro_batches,
                 const ContrastiveBatch* contrastive = nullptr);
  StepReport finish();  // Throws Error if there is none

  // From now on run_ahead() records a step of one micro-batch when its shape comes for the second
  // time, and repeats it from then on (DeviceGraph): for batches that are all of one shape. Steps
  // with a retrieval loss or quantised weights are taken as ever. Throws ConfigError where the
  // device cannot, or with dropout, whose masks would repeat.
  void record_steps();

 private:
  struct Recorded {
    torch::Tensor input;    // of the batch, packed
    torch::Tensor numbers;  // as in run_ahead()
    std::vector<std::size_t> counted;
    std::unique_ptr<DeviceGraph> graph;  // null: this shape came once
  };
  // A step whose numbers are on their way.
  struct Ahead {
    StepReport report;
    PendingCopy numbers;
  };

  StepReport begin(std::int64_t step, std::span<const Batch> micro_batches,
                   const ContrastiveBatch* contrastive) const;
  TokenLossOptions loss_options() const;
  torch::Tensor accumulate(std::span<const Batch> micro_batches,
                           const ContrastiveBatch* contrastive, const StepCounts* counts,
                           const StepReport& report);
  torch::Tensor update_ahead(const torch::Tensor& sums, std::vector<std::size_t>& counted);
  torch::Tensor run_recorded(const Batch& host);
  LossParts text_loss(const DeviceBatch& batch, const TokenLossOptions& options);
  torch::Tensor pair_loss(const ContrastiveBatch& host);
  // sums: text loss, cross-entropy, z, contrastive. Reads them, then updates or skips.
  void finish(const torch::Tensor& sums, StepReport& report);
  void judge(const StepTotals& total, StepReport& report);
  StepTotals totals(const torch::Tensor& sums, const StepReport& report);

  Needle model_;
  Optimizer& optimizer_;
  TrainStepConfig config_;
  torch::Device device_;
  std::uint64_t seed_;
  std::uint64_t rank_;
  DataParallel* replicas_;  // null: one process
  std::deque<Ahead> ahead_;
  bool record_steps_ = false;
  std::map<BatchLayout, Recorded> recorded_;
};

}  // namespace needle
