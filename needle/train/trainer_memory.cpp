// What the trainer does so that a step fits into memory.
#include <algorithm>
#include <optional>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/model/checkpoint.h"
#include "needle/train/device.h"
#include "needle/train/memory_limit.h"
#include "needle/train/micro_batch.h"
#include "needle/train/trainer.h"

namespace needle {

// The most rows that any step of a rank passes at once.
std::int64_t Trainer::rows_of_a_rank() const {
  const TrainConfig& train = config_.train;
  const std::int64_t world = train.batch_scope == BatchScope::kGlobal ? world_size() : 1;
  return std::min((train.batch_size + world - 1) / world,
                  static_cast<std::int64_t>(data_.rows.size()));
}

// The most rows that fit into memory: takes steps over the longest rows, through quantised weights
// and with the retrieval loss if there are such steps, and takes them back. On a CPU an allocation
// never fails by itself (the kernel kills), so that the process is kept within what is free.
std::int64_t Trainer::find_micro_batch() {
  constexpr double kPart = 0.9;  // of what is free
  const MemoryHeadroom free = memory_headroom();
  const std::int64_t ranks_here =
      hooks_.ranks != nullptr ? hooks_.ranks->environment().local_world : 1;
  const std::vector<std::int64_t> rows = longest_rows(rows_of_a_rank());
  const BatchLengths lengths = data_.dataset.batch_lengths(rows);
  const auto batch_of = [&](std::int64_t count) {
    return data_.dataset.batch(std::span(rows).first(static_cast<std::size_t>(count)),
                               {.enc_len = lengths.enc_len, .dec_len = lengths.dec_len});
  };
  const NamedTensors before = copied_parameters(model_);
  const auto probe = [&](const Batch& batch) {
    Optimizer optimizer(model_, optimizer_config(), 1);
    TrainStep step(model_, optimizer, config_.step, device_, config_.train.seed);
    const std::vector<Batch> parts{batch,
                                   batch};  // the second one beside the first one's gradients
    step.run(config_.step.quant.every, parts);
    if (pairs_) {
      const std::int64_t number = config_.step.contrastive_every;
      const ContrastiveBatch pairs = pairs_->batch(number, 0);
      step.run(number, std::span(parts).first(1), &pairs);
    }
    synchronize(device_);
  };
  std::int64_t found = 0;
  {
    probe(batch_of(1));  // threads and libraries take what they need
    std::optional<AddressSpaceScope> limit;
    if (device_.is_cpu()) {
      limit.emplace(static_cast<std::int64_t>(kPart * static_cast<double>(free.bytes)) /
                    ranks_here);
    }
    found = largest_that_fits(std::ssize(rows), batch_of, probe);
  }
  for (auto& [name, parameter] : named_parameters(model_)) {
    parameter.mutable_grad().reset();
  }
  assign_parameters(model_, before, "training");
  if (hooks_.ranks != nullptr) {
    for (const std::string& other : hooks_.ranks->gather(std::to_string(found))) {
      found = std::min(found, static_cast<std::int64_t>(std::stoll(other)));
    }
  }
  log_info("micro-batch: {} of {} rows{}", found, rows.size(),
           device_.is_cpu() ? format(" fit into the {:.2f} GB that are free ({})",
                                     static_cast<double>(free.bytes) / 1e9, free.source)
                            : "");
  return found;
}

// Row numbers, the longest first.
std::vector<std::int64_t> Trainer::longest_rows(std::int64_t count) const {
  std::vector<std::pair<std::int64_t, std::int64_t>> lengths;  // negative, so that ties keep order
  for (const std::int64_t row : data_.rows) {
    const BatchLengths one = data_.dataset.batch_lengths(std::span(&row, 1));
    lengths.emplace_back(-(one.enc_len + one.dec_len), row);
  }
  std::partial_sort(lengths.begin(), lengths.begin() + count, lengths.end());
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < count; ++i) {
    rows.push_back(lengths[static_cast<std::size_t>(i)].second);
  }
  return rows;
}

// Returns its report; nothing on a device that is not waited for.
std::optional<StepReport> Trainer::run_step(std::int64_t step, const StepBatches& batches,
                                            const ContrastiveBatch* pairs) {
  std::string what;
  try {
    if (train_step_->can_run_ahead()) {
      train_step_->run_ahead(step, batches.batches, pairs);
      return std::nullopt;
    }
    return train_step_->run(step, batches.batches, pairs, replicas_ ? &batches.counts : nullptr);
  } catch (const std::exception& error) {
    if (batches.batches.empty() || !is_out_of_memory(error)) {
      throw;
    }
    what = error.what();
  }
  const Batch& first = batches.batches.front();  // no later one has more rows
  throw Error(format("step {}: {}", step + 1, out_of_memory_advice(first.rows, first, what)));
}

}  // namespace needle
