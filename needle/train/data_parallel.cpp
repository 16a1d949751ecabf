#include "needle/train/data_parallel.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/model/checkpoint.h"
#include "needle/train/bucket_plan.h"
#include "needle/train/gradient_sums.h"

namespace needle {

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
  // In shared memory:
  std::vector<const float*> parts;     // `flat` of every rank
  std::vector<torch::Tensor> sources;  // the owner's parameters, if that is another rank
};

struct DataParallel::MuonTask {
  const Bucket* bucket = nullptr;
  std::size_t place = 0;
  torch::Tensor gradient;  // in the owner's `flat`
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

namespace {

// Where things lie in the memory that a rank shares: one after the other, from cache line to cache
// line.
class Layout {
 public:
  std::size_t add(std::int64_t elements) {
    const std::size_t start = bytes_;
    bytes_ += (static_cast<std::size_t>(elements) * sizeof(float) + 63) / 64 * 64;
    return start;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::int64_t floats(std::size_t bytes) {
  return static_cast<std::int64_t>((bytes + sizeof(float) - 1) / sizeof(float));
}

bool is_host_float(const torch::Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == torch::kFloat32 && tensor.is_contiguous();
}

}  // namespace

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
    buckets_.push_back(std::move(bucket));
  }
  place_buckets();
  for (const auto& bucket : buckets_) {
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
  }
  share_first_parameters();
  begin_step();
}

// Makes room for what travels: in memory that all ranks see, if there is such.
void DataParallel::place_buckets() {
  bool on_host = true;
  Layout layout;
  std::vector<std::int64_t> elements;
  for (const auto& bucket : buckets_) {
    std::int64_t sum = 0;
    for (const torch::Tensor& parameter : bucket->parameters) {
      sum += parameter.numel();
      on_host = on_host && is_host_float(parameter);
    }
    elements.push_back(sum);
    layout.add(sum);
  }
  SharedExchange* const shared = ranks_.shared();
  if (shared != nullptr && on_host) {
    for (const auto& bucket : buckets_) {
      for (const torch::Tensor& parameter : bucket->parameters) {
        if (bucket->owner == ranks_.rank()) {
          layout.add(parameter.numel());
        }
      }
    }
    layout.add(floats(TaskBoard::bytes(muon_names_.size())));  // more than one rank's
    std::string reason;
    memory_ = shared->share(layout.bytes(), reason);
    if (memory_ != nullptr) {
      map_buckets(*memory_);
      return;
    }
    log_info("gradients travel through Gloo: no memory to share ({})", reason);
  }
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    buckets_[i]->flat = torch::zeros(
        {elements[i]},
        buckets_[i]->parameters.front().options().dtype(torch::kFloat32).requires_grad(false));
  }
}

// Every rank's part: its gradients of all buckets, then the parameters that it owns, then the board
// of its tasks.
void DataParallel::map_buckets(SharedMemory& memory) {
  const auto world = static_cast<std::size_t>(ranks_.world());
  const auto tensor_at = [&](std::size_t rank, std::size_t start, torch::IntArrayRef sizes) {
    std::byte* const at = memory.part(static_cast<std::int64_t>(rank)).data() + start;
    // Whoever holds the tensor keeps the memory.
    return torch::from_blob(
        at, sizes, [keep = memory_](void*) {}, torch::kFloat32);
  };
  const std::set<std::string_view> muon(muon_names_.begin(), muon_names_.end());
  muon_tasks_.resize(world);
  std::vector<Layout> layouts(world);
  for (const auto& bucket : buckets_) {
    std::int64_t elements = 0;
    for (const torch::Tensor& parameter : bucket->parameters) {
      elements += parameter.numel();
    }
    torch::Tensor owners;
    for (std::size_t rank = 0; rank < world; ++rank) {
      const auto flat = tensor_at(rank, layouts[rank].add(elements), elements);
      bucket->parts.push_back(flat.const_data_ptr<float>());
      if (static_cast<std::int64_t>(rank) == ranks_.rank()) {
        bucket->flat = flat;
      }
      if (static_cast<std::int64_t>(rank) == bucket->owner) {
        owners = flat;
      }
    }
    std::int64_t start = 0;
    for (std::size_t i = 0; i < bucket->parameters.size(); ++i) {
      const torch::Tensor& parameter = bucket->parameters[i];
      if (muon.contains(bucket->names[i])) {
        muon_tasks_[static_cast<std::size_t>(bucket->owner)].push_back(
            {.bucket = bucket.get(),
             .place = i,
             .gradient = owners.narrow(0, start, parameter.numel()).view(parameter.sizes())});
      }
      start += parameter.numel();
    }
  }
  for (const auto& bucket : buckets_) {
    const auto owner = static_cast<std::size_t>(bucket->owner);
    for (torch::Tensor& parameter : bucket->parameters) {
      const auto place = tensor_at(owner, layouts[owner].add(parameter.numel()), parameter.sizes());
      if (bucket->owner == ranks_.rank()) {
        place.copy_(parameter);
        parameter.set_data(place);
      } else {
        bucket->sources.push_back(place);
      }
    }
  }
  std::vector<std::span<std::byte>> boards;
  std::vector<std::size_t> counts;
  for (std::size_t rank = 0; rank < world; ++rank) {
    counts.push_back(muon_tasks_[rank].size());
    const std::size_t bytes = TaskBoard::bytes(counts.back());
    const std::size_t start = layouts[rank].add(floats(bytes));
    boards.push_back(memory.part(static_cast<std::int64_t>(rank)).subspan(start, bytes));
  }
  board_ = std::make_unique<TaskBoard>(*ranks_.shared(), ranks_.rank(), boards, counts);
}

DataParallel::~DataParallel() {
  for (const auto& bucket : buckets_) {
    for (const torch::Tensor& parameter : bucket->parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }
}

Optimizer DataParallel::make_optimizer(const OptimizerConfig& config, std::int64_t total_steps) {
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
  Optimizer optimizer(owned, muon, config, total_steps);
  if (board_ != nullptr) {
    optimizer.set_orthogonalizer([this](const auto& gradients, const auto& options) {
      return orthogonalizes_each_alone(options) ? orthogonalize_together(gradients, options)
                                                : orthogonalize(gradients, options);
    });
  }
  return optimizer;
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
  host_check_ = 0.0F;
}

void DataParallel::last_backward_follows() { overlap_ = true; }

void DataParallel::fill(Bucket& bucket, std::size_t place) {
  if (bucket.filled[place]) {
    return;
  }
  torch::Tensor& parameter = bucket.parameters[place];
  if (const torch::Tensor gradient = parameter.grad(); gradient.defined()) {
    torch::Tensor& view = bucket.views[place];
    if (is_host_float(gradient) && is_host_float(view)) {
      host_check_ += copy_and_sum(
          {gradient.const_data_ptr<float>(), static_cast<std::size_t>(gradient.numel())},
          view.data_ptr<float>());
    } else {
      view.copy_(gradient);
      check_ += view.sum();
    }
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
    if (memory_ != nullptr) {
      ranks_.shared()->announce(SharedExchange::Event::kGradients);
    } else {
      bucket.exchange = ranks_.start_sum_at(bucket.flat, bucket.owner);
    }
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
  check_ += host_check_;
  const StepTotals totals = sum_numbers(numbers, sum_own_buckets());
  for (const auto& bucket : buckets_) {
    for (std::size_t i = 0; bucket->owner == ranks_.rank() && i < bucket->views.size(); ++i) {
      if (bucket->present[i]) {
        bucket->parameters[i].mutable_grad() = bucket->views[i];
      }
    }
  }
  return totals;
}

// Adds up the gradients of the owned buckets, as they arrive. Returns the sum of their squares,
// float32 [].
torch::Tensor DataParallel::sum_own_buckets() {
  RECORD_USER_SCOPE("step: gradients to owners");
  double squares = 0.0;
  std::vector<torch::Tensor> norms{torch::zeros({}, check_.options())};
  std::uint32_t number = 0;
  if (memory_ != nullptr) {  // all of this step's are announced by now
    number = ranks_.shared()->announced(SharedExchange::Event::kGradients) -
             static_cast<std::uint32_t>(buckets_.size());
  }
  for (const auto& bucket : buckets_) {
    ++number;
    const bool own = bucket->owner == ranks_.rank();
    if (bucket->exchange) {
      bucket->exchange->wait();
      bucket->exchange.reset();
    }
    for (std::int64_t rank = 0; memory_ != nullptr && own && rank < ranks_.world(); ++rank) {
      ranks_.shared()->await(rank, SharedExchange::Event::kGradients, number);
    }
    if (own && is_host_float(bucket->flat)) {
      float* const sum = bucket->flat.data_ptr<float>();
      const std::vector<const float*> itself{sum};
      squares += add_up(memory_ != nullptr ? bucket->parts : itself,
                        {sum, static_cast<std::size_t>(bucket->flat.numel())});
    } else if (own) {
      norms.push_back(bucket->flat.norm());
    }
  }
  return torch::stack(norms).square().sum() + squares;
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

void DataParallel::share_parameters() {
  RECORD_USER_SCOPE("step: parameters to all");
  const torch::NoGradGuard no_grad;
  if (memory_ != nullptr) {
    fetch_parameters();
    return;
  }
  for (const auto& bucket : buckets_) {
    if (bucket->owner == ranks_.rank()) {
      at::_foreach_copy_(bucket->views, bucket->parameters);
    }
    bucket->exchange = ranks_.start_broadcast(bucket->flat, bucket->owner);
  }
  for (const auto& bucket : buckets_) {
    bucket->exchange->wait();
    bucket->exchange.reset();
    if (bucket->owner != ranks_.rank()) {
      at::_foreach_copy_(bucket->parameters, bucket->views);
    }
  }
}

// A rank changes its parameters again when all have come to the sum of the next step's numbers, so
// not before the others have read them here.
void DataParallel::fetch_parameters() {
  SharedExchange& shared = *ranks_.shared();
  shared.announce(SharedExchange::Event::kParameters);
  const std::uint32_t number = shared.announced(SharedExchange::Event::kParameters);
  // Each begins behind itself, so that they do not all read one rank's at a time.
  for (std::int64_t i = 1; i < ranks_.world(); ++i) {
    const std::int64_t owner = (ranks_.rank() + i) % ranks_.world();
    shared.await(owner, SharedExchange::Event::kParameters, number);
    for (const auto& bucket : buckets_) {
      if (bucket->owner == owner) {
        at::_foreach_copy_(bucket->parameters, bucket->sources);
      }
    }
  }
}

// Each in the place of its gradient. Who does which depends on the moment, the results do not.
std::vector<torch::Tensor> DataParallel::orthogonalize_together(
    const std::vector<torch::Tensor>& gradients, const OrthogonalizeOptions& options) {
  const auto task_of = [this](std::int64_t owner, std::size_t task) -> const MuonTask& {
    return muon_tasks_[static_cast<std::size_t>(owner)][task];
  };
  const std::uint32_t step = ranks_.shared()->announced(SharedExchange::Event::kParameters) + 1;
  board_->run(
      step,
      [&](std::int64_t owner, std::size_t task) {
        const MuonTask& one = task_of(owner, task);
        return static_cast<bool>(one.bucket->present[one.place]);  // the same on all by now
      },
      [&](std::int64_t owner, std::size_t task) {
        const MuonTask& one = task_of(owner, task);
        one.gradient.copy_(orthogonalize({one.gradient}, options).front());
      });
  std::set<const void*> done;
  for (const MuonTask& one : muon_tasks_[static_cast<std::size_t>(ranks_.rank())]) {
    done.insert(one.gradient.const_data_ptr());
  }
  std::vector<torch::Tensor> results;
  for (const torch::Tensor& gradient : gradients) {  // others stand for one that is not there
    results.push_back(done.contains(gradient.const_data_ptr())
                          ? gradient
                          : orthogonalize({gradient}, options).front());
  }
  return results;
}

void DataParallel::share_first_parameters() {
  for (const auto& bucket : buckets_) {
    at::_foreach_copy_(bucket->views, bucket->parameters);
    ranks_.broadcast(bucket->flat, 0);
    if (!ranks_.is_first()) {
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
