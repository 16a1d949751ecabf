// One training step on several ranks: gradients summed while the backward pass still runs, each
// optimiser state on one rank only (ZeRO-1), so that Newton-Schulz is shared out with it.
//
// The parameters are cut into buckets, in the order in which the backward pass finishes them, and
// every bucket has an owner. A full bucket travels to its owner at once, where its gradients add
// up; the owner updates it; then it travels to all. Every rank holds all parameters and its own
// part of the optimiser. On the wire: as much as one all-reduce of the gradients.
//
// Ranks that share memory (Ranks::shared) have it hold the buckets of all and each owner's
// parameters: gradients are added up where their ranks wrote them, and updated parameters read
// where the optimiser wrote them, one copy less on either side of both ways. A rank that is through
// with its Newton-Schulz takes over matrices of another.
//
// Losses are divided by the counts of the global batch before, so gradients are summed, not
// averaged: the result is that of one process with the whole batch, to rounding (sums in another
// order).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/model/needle.h"
#include "needle/model/tensor_view.h"
#include "needle/train/optimizer.h"
#include "needle/train/ranks.h"
#include "needle/train/task_board.h"

namespace needle {

// What the ranks agree on after a backward pass; the same on all of them.
struct StepTotals {
  std::vector<double> sums;             // of the numbers that each gave, added up
  double grad_norm = 0.0;               // over all gradients, before clipping
  std::vector<std::int64_t> bad_ranks;  // that contributed a number or gradient that is not finite
  bool stop = false;                    // some rank wants to stop: all stop after this step
};

// Refers to the model and the ranks; both must outlive it. Not thread-safe. Throws as Ranks.
class DataParallel {
 public:
  // Sends rank 0's parameters to all.
  DataParallel(Ranks& ranks, const Needle& model);
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;
  DataParallel& operator=(const DataParallel&) = delete;

  Ranks& ranks() { return ranks_; }

  // The optimiser over the parameters that this rank owns. Its steps may call this object.
  Optimizer make_optimizer(const OptimizerConfig& config, std::int64_t total_steps);

  // A step, in this order. begin_step: gradients become undefined on every rank.
  void begin_step();
  // The next backward pass is the step's last on this rank: its gradients may leave as they come.
  // Passes before it only add up here. A rank without rows calls neither this nor backward.
  void last_backward_follows();
  // Told to the others with the step's totals.
  void want_stop(bool stop) { want_stop_ = stop; }
  // Sends what has not left yet and waits. `numbers`: float32 [n] on the model's device, summed
  // over ranks. Afterwards the owned parameters have their gradients, and no others any.
  StepTotals finish_backward(const torch::Tensor& numbers);
  // After the optimiser's step on every rank.
  void share_parameters();

  // Name of the first parameter whose summed gradient is not finite, or "only their sum"; every
  // rank must ask.
  std::string first_bad_gradient();

  // The optimiser's whole state on rank 0, as one process would have it; empty elsewhere.
  NamedTensors gather_state(const Optimizer& optimizer);
  // The owned part of a whole state.
  NamedTensors own_part(const NamedTensors& state) const;

  // Throws Error if the ranks' parameters have come to differ by a single bit.
  void check_equal_parameters();

 private:
  struct Bucket;
  class Hook;
  void place_buckets();
  void map_buckets(SharedMemory& memory);
  void fill(Bucket& bucket, std::size_t place);
  void send_ready();
  torch::Tensor sum_own_buckets();
  StepTotals sum_numbers(const torch::Tensor& numbers, const torch::Tensor& square);
  void share_first_parameters();
  void fetch_parameters();
  std::vector<torch::Tensor> orthogonalize_together(const std::vector<torch::Tensor>& gradients,
                                                    const OrthogonalizeOptions& options);

  Ranks& ranks_;
  std::vector<std::string> muon_names_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  std::size_t next_to_send_ = 0;
  bool overlap_ = false;
  bool want_stop_ = false;
  torch::Tensor check_;      // float32 []: sum of this rank's gradients, to see if they are finite
  float host_check_ = 0.0F;  // the same of those on the CPU
  std::shared_ptr<SharedMemory> memory_;  // null: buckets travel
  // In shared memory: Muon's parameters of each rank, and who does which.
  struct MuonTask;
  std::vector<std::vector<MuonTask>> muon_tasks_;
  std::unique_ptr<TaskBoard> board_;
};

}  // namespace needle
