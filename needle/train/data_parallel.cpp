#include "needle/train/data_parallel.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"

namespace needle {
namespace {

// Small enough that the first bucket leaves early and every rank owns several, large enough that
// latency does not count.
constexpr std::int64_t kLargestBucket = std::int64_t{1} << 20;
constexpr std::int64_t kSmallestBucket = std::int64_t{1} << 14;
constexpr std::int64_t kBucketsPerRank = 8;

// What no text loss reaches: only retrieval steps have gradients for it, so it travels last.
bool is_late(std::string_view name) {
  return name.starts_with("contrastive_head.") || name == "log_temp";
}

// Newton-Schulz of a [r, c] kernel takes 5 * 2 (r r c + r r r + r r c) operations, r the shorter
// side; AdamW some hundred a value, since it waits for memory.
double update_cost(const torch::Tensor& parameter, bool muon) {
  const auto elements = static_cast<double>(parameter.numel());
  if (!muon) {
    return 500.0 * elements;
  }
  const auto shorter = static_cast<double>(std::min(parameter.size(0), parameter.size(1)));
  return 10.0 * shorter * (2.0 * elements + shorter * shorter);
}

std::vector<ParameterCost> backward_order(const Needle& model,
                                          const std::vector<std::string>& muon_names) {
  const std::set<std::string_view> muon(muon_names.begin(), muon_names.end());
  std::vector<ParameterCost> order;
  for (const auto& item : model->named_parameters()) {
    order.push_back({.name = item.key(),
                     .elements = item.value().numel(),
                     .update_cost = update_cost(item.value(), muon.contains(item.key()))});
  }
  std::reverse(order.begin(), order.end());
  std::stable_partition(order.begin(), order.end(),
                        [](const ParameterCost& one) { return !is_late(one.name); });
  return order;
}

}  // namespace

std::vector<BucketPlan> plan_buckets(const std::vector<ParameterCost>& backward_order,
                                     std::int64_t world) {
  std::int64_t total = 0;
  for (const ParameterCost& one : backward_order) {
    total += one.elements;
  }
  const std::int64_t limit =
      std::clamp(total / (kBucketsPerRank * world), kSmallestBucket, kLargestBucket);
  std::vector<BucketPlan> buckets;
  std::vector<double> costs;
  for (const ParameterCost& one : backward_order) {
    const bool starts_late =
        is_late(one.name) && !buckets.empty() && !is_late(buckets.back().names.front());
    if (buckets.empty() || starts_late || buckets.back().elements + one.elements > limit) {
      buckets.emplace_back();
      costs.push_back(0.0);
    }
    buckets.back().names.push_back(one.name);
    buckets.back().elements += one.elements;
    costs.back() += one.update_cost;
  }
  // The dearest first, each to the rank with the least to do.
  std::vector<std::size_t> by_cost(buckets.size());
  for (std::size_t i = 0; i < by_cost.size(); ++i) {
    by_cost[i] = i;
  }
  std::stable_sort(by_cost.begin(), by_cost.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  std::vector<double> load(static_cast<std::size_t>(world), 0.0);
  for (const std::size_t i : by_cost) {
    const auto owner = std::min_element(load.begin(), load.end());
    *owner += costs[i];
    buckets[i].owner = owner - load.begin();
  }
  return buckets;
}

struct DataParallel::Bucket {
  std::vector<std::string> names;
  std::vector<torch::Tensor> parameters;
  std::vector<torch::Tensor> views;  // of `flat`, in the parameters' shapes
  torch::Tensor flat;                // gradients on their way, later parameters
  std::vector<bool> filled;
  std::vector<bool> present;  // this rank had a gradient
  std::size_t missing = 0;    // not filled yet
  std::int64_t owner = 0;
  PendingExchange exchange;
};

class DataParallel::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(DataParallel& owner, Bucket& bucket, std::size_t place)
      : owner_(owner), bucket_(bucket), place_(place) {}
  void operator()(const torch::autograd::Variable& /*parameter*/) override {
    if (owner_.overlap_) {
      const torch::NoGradGuard no_grad;
      owner_.fill(bucket_, place_);
      owner_.send_ready();
    }
  }

 private:
  DataParallel& owner_;
  Bucket& bucket_;
  std::size_t place_;
};

DataParallel::DataParallel(Ranks& ranks, const Needle& model)
    : ranks_(ranks), muon_names_(model->kernel_names()) {
  const torch::NoGradGuard no_grad;
  const NamedTensors parameters = named_parameters(model);
  for (const BucketPlan& plan : plan_buckets(backward_order(model, muon_names_), ranks.world())) {
    auto bucket = std::make_unique<Bucket>();
    bucket->names = plan.names;
    bucket->owner = plan.owner;
    for (const std::string& name : plan.names) {
      bucket->parameters.push_back(parameters.at(name));
    }
    bucket->flat = torch::zeros(
        {plan.elements},
        bucket->parameters.front().options().dtype(torch::kFloat32).requires_grad(false));
    std::int64_t start = 0;
    for (const torch::Tensor& parameter : bucket->parameters) {
      bucket->views.push_back(
          bucket->flat.narrow(0, start, parameter.numel()).view(parameter.sizes()));
      start += parameter.numel();
    }
    for (std::size_t i = 0; i < bucket->parameters.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(bucket->parameters[i],
                                                     std::make_unique<Hook>(*this, *bucket, i));
    }
    buckets_.push_back(std::move(bucket));
  }
  share_parameters(/*from_first=*/true);
  begin_step();
}

DataParallel::~DataParallel() {
  for (const auto& bucket : buckets_) {
    for (const torch::Tensor& parameter : bucket->parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }
}

Optimizer DataParallel::make_optimizer(const OptimizerConfig& config,
                                       std::int64_t total_steps) const {
  NamedTensors owned;
  std::vector<std::string> muon;
  for (const auto& bucket : buckets_) {
    if (bucket->owner == ranks_.rank()) {
      for (std::size_t i = 0; i < bucket->names.size(); ++i) {
        owned[bucket->names[i]] = bucket->parameters[i];
      }
    }
  }
  std::copy_if(muon_names_.begin(), muon_names_.end(), std::back_inserter(muon),
               [&](const std::string& name) { return owned.contains(name); });
  return Optimizer(owned, muon, config, total_steps);
}

void DataParallel::begin_step() {
  for (const auto& bucket : buckets_) {
    bucket->filled.assign(bucket->parameters.size(), false);
    bucket->present.assign(bucket->parameters.size(), false);
    bucket->missing = bucket->parameters.size();
    for (torch::Tensor& parameter : bucket->parameters) {
      parameter.mutable_grad().reset();
    }
  }
  next_to_send_ = 0;
  overlap_ = false;
  check_ = torch::zeros({}, buckets_.front()->flat.options());
}

void DataParallel::last_backward_follows() { overlap_ = true; }

void DataParallel::fill(Bucket& bucket, std::size_t place) {
  if (bucket.filled[place]) {
    return;
  }
  torch::Tensor& parameter = bucket.parameters[place];
  if (parameter.grad().defined()) {
    bucket.views[place].copy_(parameter.grad());
    bucket.present[place] = true;
    parameter.mutable_grad().reset();
  } else {
    bucket.views[place].zero_();
  }
  bucket.filled[place] = true;
  --bucket.missing;
}

// In the order of the buckets: every rank must start the same exchanges in the same order.
void DataParallel::send_ready() {
  while (next_to_send_ < buckets_.size() && buckets_[next_to_send_]->missing == 0) {
    Bucket& bucket = *buckets_[next_to_send_++];
    check_ += bucket.flat.sum();
    bucket.exchange = ranks_.start_sum_at(bucket.flat, bucket.owner);
  }
}

StepTotals DataParallel::finish_backward(const torch::Tensor& numbers) {
  const torch::NoGradGuard no_grad;
  overlap_ = false;
  for (const auto& bucket : buckets_) {
    for (std::size_t i = 0; i < bucket->parameters.size(); ++i) {
      fill(*bucket, i);
    }
  }
  send_ready();
  std::vector<torch::Tensor> norms{torch::zeros({}, check_.options())};
  for (const auto& bucket : buckets_) {
    bucket->exchange->wait();
    bucket->exchange.reset();
    if (bucket->owner == ranks_.rank()) {
      norms.push_back(bucket->flat.norm());
    }
  }
  const StepTotals totals = sum_numbers(numbers, torch::stack(norms).square().sum());
  for (const auto& bucket : buckets_) {
    for (std::size_t i = 0; bucket->owner == ranks_.rank() && i < bucket->views.size(); ++i) {
      if (bucket->present[i]) {
        bucket->parameters[i].mutable_grad() = bucket->views[i];
      }
    }
  }
  return totals;
}

// One exchange for everything that the ranks must agree on: the caller's numbers, the square of the
// norm, which rank had something that is not finite, whether one wants to stop, and which
// parameters had a gradient anywhere.
StepTotals DataParallel::sum_numbers(const torch::Tensor& numbers, const torch::Tensor& square) {
  const auto options = numbers.options();
  const auto own = torch::cat({numbers.flatten(), check_.view({1})});
  auto bad = torch::zeros({ranks_.world()}, options);
  bad[ranks_.rank()] = own.isfinite().logical_not().any().to(torch::kFloat32);
  std::vector<float> present{want_stop_ ? 1.0F : 0.0F};
  for (const auto& bucket : buckets_) {
    present.insert(present.end(), bucket->present.begin(), bucket->present.end());
  }
  auto all = torch::cat({numbers.flatten(), square.view({1}), bad,
                         torch::tensor(present, torch::kFloat32).to(options.device())});
  ranks_.sum(all);
  const auto host = all.cpu();
  const float* next = host.const_data_ptr<float>();
  StepTotals totals;
  for (std::int64_t i = 0; i < numbers.numel(); ++i) {
    totals.sums.push_back(*next++);
  }
  totals.grad_norm = std::sqrt(static_cast<double>(*next++));
  for (std::int64_t rank = 0; rank < ranks_.world(); ++rank) {
    if (*next++ > 0.0F) {
      totals.bad_ranks.push_back(rank);
    }
  }
  totals.stop = *next++ > 0.0F;
  for (const auto& bucket : buckets_) {
    for (std::size_t i = 0; i < bucket->present.size(); ++i) {
      bucket->present[i] = *next++ > 0.0F;
    }
  }
  return totals;
}

void DataParallel::share_parameters() { share_parameters(/*from_first=*/false); }

void DataParallel::share_parameters(bool from_first) {
  const torch::NoGradGuard no_grad;
  for (const auto& bucket : buckets_) {
    const std::int64_t root = from_first ? 0 : bucket->owner;
    if (root == ranks_.rank()) {
      at::_foreach_copy_(bucket->views, bucket->parameters);
    }
    bucket->exchange = ranks_.start_broadcast(bucket->flat, root);
  }
  for (const auto& bucket : buckets_) {
    bucket->exchange->wait();
    bucket->exchange.reset();
    if ((from_first ? 0 : bucket->owner) != ranks_.rank()) {
      at::_foreach_copy_(bucket->parameters, bucket->views);
    }
  }
}

std::string DataParallel::first_bad_gradient() {
  std::vector<std::string> names;
  for (const auto& bucket : buckets_) {
    names.insert(names.end(), bucket->names.begin(), bucket->names.end());
  }
  auto bad = torch::zeros({static_cast<std::int64_t>(names.size())});
  std::int64_t place = 0;
  for (const auto& bucket : buckets_) {
    for (const torch::Tensor& view : bucket->views) {
      const bool own = bucket->owner == ranks_.rank();
      bad[place++] = own && !view.isfinite().all().item<bool>() ? 1.0F : 0.0F;
    }
  }
  ranks_.sum(bad);
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (bad[static_cast<std::int64_t>(i)].item<float>() > 0.0F) {
      return names[i];
    }
  }
  return "only their sum";
}

NamedTensors DataParallel::gather_state(const Optimizer& optimizer) {
  const NamedTensors own = optimizer.state_dict();
  NamedTensors whole;
  if (ranks_.is_first()) {
    for (const auto& [name, tensor] : own) {
      whole[name] = to_host(tensor);
    }
  }
  const std::set<std::string_view> muon(muon_names_.begin(), muon_names_.end());
  const auto collect = [&](const std::string& name, const torch::Tensor& like, std::int64_t owner) {
    torch::Tensor tensor = owner == ranks_.rank() ? to_host(own.at(name)).clone()
                                                  : torch::zeros(like.sizes(), like.scalar_type());
    ranks_.broadcast(tensor, owner);
    if (ranks_.is_first()) {
      whole[name] = tensor;
    }
  };
  const auto count = torch::zeros({}, torch::kInt64);
  for (const auto& bucket : buckets_) {
    for (std::size_t i = 0; bucket->owner != 0 && i < bucket->names.size(); ++i) {
      const std::string& name = bucket->names[i];
      if (muon.contains(name)) {
        collect("muon.momentum." + name, bucket->parameters[i], bucket->owner);
      } else {
        collect("adam.m." + name, bucket->parameters[i], bucket->owner);
        collect("adam.v." + name, bucket->parameters[i], bucket->owner);
        collect("adam.updates." + name, count, bucket->owner);
      }
    }
  }
  return whole;
}

NamedTensors DataParallel::own_part(const NamedTensors& state) const {
  NamedTensors part;
  for (const auto& [name, tensor] : state) {
    part.emplace(name, tensor);
  }
  for (const auto& bucket : buckets_) {
    if (bucket->owner != ranks_.rank()) {
      for (const std::string& name : bucket->names) {
        for (const char* kind : {"muon.momentum.", "adam.m.", "adam.v.", "adam.updates."}) {
          part.erase(kind + name);
        }
      }
    }
  }
  return part;
}

void DataParallel::check_equal_parameters() {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> sums;  // of the bits
  for (const auto& bucket : buckets_) {
    for (const torch::Tensor& parameter : bucket->parameters) {
      sums.push_back(to_host(parameter).view({-1}).view(torch::kInt32).to(torch::kInt64).sum());
    }
  }
  const auto own = torch::stack(sums);
  auto first = own.clone();
  ranks_.broadcast(first, 0);
  auto differs = torch::zeros({ranks_.world()});
  differs[ranks_.rank()] = own.equal(first) ? 0.0F : 1.0F;
  ranks_.sum(differs);
  for (std::int64_t rank = 0; rank < ranks_.world(); ++rank) {
    if (differs[rank].item<float>() > 0.0F) {
      throw Error(
          format("the parameters of rank {} differ from those of rank 0: a fault of memory or of "
                 "the network; go on from the last checkpoint with --resume",
                 rank));
    }
  }
}

}  // namespace needle
