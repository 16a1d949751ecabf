// The processes that train one model together: who they are and how they exchange tensors.
// c10d underneath: Gloo on the CPU, on other devices what their plug-in makes (device_plugin_api.h;
// NCCL on CUDA). A device without a group of its own exchanges through host memory. Ranks that all
// run on the CPU of one host exchange through memory that they share (shared_exchange.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/core/enum_names.h"
#include "needle/train/rank_environment.h"
#include "needle/train/shared_exchange.h"

namespace needle {

// What carries CPU tensors from rank to rank.
enum class ExchangeKind { kAuto, kShared, kGloo };
inline constexpr EnumNames<ExchangeKind, 3> kExchangeKindNames{{{{ExchangeKind::kAuto, "auto"},
                                                                 {ExchangeKind::kShared, "shared"},
                                                                 {ExchangeKind::kGloo, "gloo"}}}};
template <>
struct EnumTable<ExchangeKind> {
  static constexpr const auto& value = kExchangeKindNames;
};

struct RanksOptions {
  ExchangeKind exchange = ExchangeKind::kAuto;  // the same on every rank
  double silence_s = 30.0;     // a rank without a sign of life for so long is given up
  double progress_s = 1800.0;  // a rank that lets the others wait for so long, too
  double beat_s = 1.0;         // between two signs of life
};

// An exchange under way. Wait before the tensor is touched again; a destroyed one was not waited
// for.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void wait() = 0;  // throws as Ranks
};
using PendingExchange = std::unique_ptr<Exchange>;

// Every rank makes the same calls in the same order, from one thread at a time. A call that cannot
// succeed (a rank was killed, hangs, or ended with an error) throws Error naming that rank: at the
// latest silence_s + two beats after it died, progress_s after it hung. The object is of no use
// then.
class Ranks {
 public:
  // Meets the others; returns nothing for a run of one process. Throws ConfigError if this LibTorch
  // cannot do it, Error if the others do not come or kShared cannot be had.
  static std::unique_ptr<Ranks> join(const RankEnvironment& environment,
                                     const torch::Device& device, const RanksOptions& options = {});
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  std::int64_t rank() const;
  std::int64_t world() const;
  bool is_first() const { return rank() == 0; }
  const RankEnvironment& environment() const;
  std::string exchange() const;  // "shared" or "gloo", or that of the device: "nccl"
  SharedExchange* shared();      // null: the ranks share no memory

  // float32, float64 or int64, contiguous, any device of this run (float64: on the CPU).
  void sum(torch::Tensor& tensor);                                         // on every rank
  PendingExchange start_sum_at(torch::Tensor& tensor, std::int64_t root);  // elsewhere undefined
  PendingExchange start_broadcast(torch::Tensor& tensor, std::int64_t root);
  void broadcast(torch::Tensor& tensor, std::int64_t root);

  std::string broadcast(const std::string& bytes, std::int64_t root = 0);
  std::vector<std::string> gather(const std::string& bytes);  // of all ranks, on every rank
  void barrier();

  // `work` on one rank of each host first, then on the others: downloads, caches.
  void one_per_host_first(const std::function<void()>& work);

  // What the monitor is told: a step of own work (seconds since the last call, waiting left out).
  void finished_step();
  // Why this rank gives up; the others then stop with this message. Never throws.
  void report_failure(const std::string& message) noexcept;

 private:
  struct Impl;
  explicit Ranks(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The device that a rank takes: "cuda", or "auto" where there are GPUs, is "cuda:1" on local
// rank 1. A name with a number is taken as it is, and the CPU has none.
std::string device_of_rank(const std::string& name, const RankEnvironment& environment);

}  // namespace needle
