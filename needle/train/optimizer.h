// The optimiser of a run: one clip over everything, then Muon for the dense kernels and AdamW for
// the rest. Specification, section 7.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include "needle/model/needle.h"
#include "needle/model/tensor_view.h"
#include "needle/train/adamw.h"
#include "needle/train/muon.h"
#include "needle/train/schedule.h"

namespace needle {

struct OptimizerConfig {
  MuonConfig muon;
  AdamConfig adam;
  ScheduleConfig schedule;
  double max_grad_norm = 1.0;
  bool step_without_gradient = false;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("muon", self.muon, "Dense kernels");
    visit("adam", self.adam, "Embedding, norms, gates, biases, temperature");
    visit("schedule", self.schedule, "Warmup, stable, decay; one for both groups");
    visit("max_grad_norm", self.max_grad_norm,
          "Clip the norm over all gradients to this; 0: never");
    visit("step_without_gradient", self.step_without_gradient,
          "As the reference: a parameter without gradient counts as one of zeros, so decay and "
          "momentum move it");
  }
};

// Refers to the parameters it was given and writes them in place. Not thread-safe.
class Optimizer {
 public:
  // The parameters of `model`, already on their device: Muon takes its kernel_names().
  // Throws ConfigError on a setting out of range.
  Optimizer(const Needle& model, const OptimizerConfig& config, std::int64_t total_steps);
  // `muon_names`: those of `parameters` that Muon takes, each 2-D.
  Optimizer(const NamedTensors& parameters, const std::vector<std::string>& muon_names,
            const OptimizerConfig& config, std::int64_t total_steps);

  void zero_grad();  // gradients become undefined

  // Norm over all gradients before clipping, float32 [] on their device; 0 if there is none.
  torch::Tensor grad_norm() const;

  // Clips by `grad_norm` (gradients are unchanged below max_grad_norm, else divided by the norm),
  // updates every parameter, counts one update. The caller made sure that the norm is finite. A
  // parameter without gradient is left alone, its state too: decay would shrink what nothing
  // trains.
  void step(double grad_norm);
  double step();  // with grad_norm(), which it returns; waits for the device

  // As step() on a device that the host does not wait for: `grad_norm` [] lies there, and where
  // `good` (bool []) is false nothing changes. The host counts the step (with what was returned)
  // and confirms it once it knows, in the steps' order; counts, rates and the state are right when
  // all are confirmed. Returned: which of AdamW's parameters had a gradient.
  std::vector<std::size_t> update_ahead(const torch::Tensor& grad_norm, const torch::Tensor& good);
  void count_ahead(const std::vector<std::size_t>& counted);
  double confirm(bool skipped);  // returns the part of the peak rates that the step was taken with

  std::int64_t updates() const { return updates_; }  // done so far
  double lr_adam() const;                            // of the next update: what step() will use
  double lr_muon() const;
  // Multiplies the schedule's rates from the next update on; not part of the state.
  void set_lr_scale(double scale);
  // How step() comes to Muon's directions from now on; the same ones as by orthogonalize().
  void set_orthogonalizer(Orthogonalizer orthogonalizer) {
    orthogonalizer_ = std::move(orthogonalizer);
  }
  const Schedule& schedule() const { return schedule_; }
  const OptimizerConfig& config() const { return config_; }

  // Everything that a resumed run needs: "updates" (int64 []), "muon.momentum.NAME", "adam.m.NAME",
  // "adam.v.NAME" and "adam.updates.NAME" (int64 [], that parameter's own count, for its bias
  // correction). The tensors are the live ones: clone them or write them before the next step.
  NamedTensors state_dict() const;

  // Copies. Throws FormatError naming the tensor that is missing, unknown or of another shape or
  // dtype; the state is then unchanged.
  void load_state_dict(const NamedTensors& state);

 private:
  struct MuonLeaf {
    std::string name;
    torch::Tensor parameter;
    torch::Tensor momentum;
  };
  struct AdamLeaf {
    std::string name;
    torch::Tensor parameter;
    torch::Tensor first_moment;
    torch::Tensor second_moment;
    std::int64_t updates = 0;
  };

  // Counts and rates on the parameters' device, for step_ahead().
  struct OnDevice {
    torch::Tensor scales;        // float32 [total_steps + 1], the schedule
    torch::Tensor lr_scale;      // float32 []
    torch::Tensor updates;       // int64 [1]
    torch::Tensor adam_updates;  // int64 [AdamW's parameters]
    // Some of AdamW's parameters, and their places as int64 [n]: few sets come up.
    std::map<std::vector<std::size_t>, torch::Tensor> places;
    const torch::Tensor& places_of(const std::vector<std::size_t>& which);
  };
  OnDevice& on_device(const torch::Device& device);

  std::vector<torch::Tensor> gradients() const;
  void step_muon();
  void step_adam();

  OptimizerConfig config_;
  Schedule schedule_;
  std::vector<MuonLeaf> muon_;
  std::vector<AdamLeaf> adam_;
  std::int64_t updates_ = 0;
  double lr_scale_ = 1.0;
  Orthogonalizer orthogonalizer_;
  std::optional<OnDevice> on_device_;
  struct Unconfirmed {
    std::vector<std::size_t> counted;  // which of adam_
    double lr_scale = 1.0;
  };
  std::deque<Unconfirmed> unconfirmed_;
};

}  // namespace needle
