#include "needle/train/ranks.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <utility>

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/train/device.h"
#include "needle/train/device_plugin.h"
#include "needle/train/rank_monitor.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;
using StorePointer = c10::intrusive_ptr<c10d::Store>;
using BackendPointer = c10::intrusive_ptr<c10d::Backend>;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

std::chrono::milliseconds to_milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(1000.0 * seconds));
}

std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Every start of a job has keys of its own: a store that outlives it still holds the old ones.
StorePointer connect(const RankEnvironment& env, double timeout_s, bool serve) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(env.master_port);
  options.isServer = serve && env.rank == 0 && !env.hosted_store;
  options.numWorkers = static_cast<std::size_t>(env.world);
  options.waitWorkers = false;
  options.timeout = to_milliseconds(timeout_s);
  if (options.isServer && env.store_fd) {
    options.masterListenFd = env.store_fd;
  }
  try {
    auto store = c10::make_intrusive<c10d::TCPStore>(env.master_host, options);
    return c10::make_intrusive<c10d::PrefixStore>(format("needle/{}", env.restarts), store);
  } catch (const std::exception& error) {
    throw Error(format(
        "rank {}: {}:{}, where rank 0 listens, cannot be reached ({}). Is rank 0 running there, "
        "and do MASTER_ADDR and MASTER_PORT agree on all hosts?",
        env.rank, env.master_host, env.master_port, first_line(error.what())));
  }
}

class StoreBoard : public RankBoard {
 public:
  explicit StoreBoard(StorePointer store) : store_(std::move(store)) {}
  void post(const std::string& key, const std::string& text) override { store_->set(key, text); }
  std::vector<std::string> read(const std::vector<std::string>& keys) override {
    std::vector<std::string> texts(keys.size());
    std::vector<std::string> known;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < keys.size(); ++i) {  // a get of a key that is not there would wait
      if (seen_.size() < keys.size()) {
        seen_.resize(keys.size(), false);
      }
      seen_[i] = seen_[i] || store_->check({keys[i]});
      if (seen_[i]) {
        known.push_back(keys[i]);
        places.push_back(i);
      }
    }
    const auto values = store_->multiGet(known);
    for (std::size_t i = 0; i < values.size(); ++i) {
      texts[places[i]].assign(values[i].begin(), values[i].end());
    }
    return texts;
  }

 private:
  StorePointer store_;
  std::vector<bool> seen_;
};

#ifdef USE_C10D_GLOO
struct Route {
  std::string local;   // this host's address on the way to the other one; empty: no way
  std::string remote;  // the other one's, as this host resolves its name
  bool loopback() const { return local.starts_with("127.") || local == "::1"; }
};

std::string numeric(const sockaddr* address, socklen_t size) {
  std::array<char, NI_MAXHOST> text{};
  const int rc = getnameinfo(address, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
  return rc == 0 ? std::string(text.data()) : std::string();
}

// Asks the routing table; a UDP socket sends nothing when it is connected. IPv4 first, so that all
// ranks agree on one family wherever there are both.
Route route_to(const std::string& host, int port) {
  for (const int family : {AF_INET, AF_INET6}) {
    addrinfo hints{};
    hints.ai_family = family;
    hints.ai_socktype = SOCK_DGRAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
      continue;
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> guard(found, &freeaddrinfo);
    for (const addrinfo* candidate = found; candidate != nullptr; candidate = candidate->ai_next) {
      const int descriptor = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
      sockaddr_storage own{};
      socklen_t size = sizeof(own);
      auto* const address = reinterpret_cast<sockaddr*>(&own);
      const bool good = descriptor >= 0 &&
                        connect(descriptor, candidate->ai_addr, candidate->ai_addrlen) == 0 &&
                        getsockname(descriptor, address, &size) == 0;
      if (descriptor >= 0) {
        close(descriptor);
      }
      if (good) {
        return {.local = numeric(address, size),
                .remote = numeric(candidate->ai_addr, candidate->ai_addrlen)};
      }
    }
  }
  return {};
}

// Where the other ranks reach this one: the address on the way to rank 0's host. The host's own
// name would not do, as it often leads to the loopback (127.0.1.1). On rank 0's host the way to
// itself may be the loopback, too: it goes by the address that other hosts know it by, if there are
// any. All ranks call this.
std::string reachable_address(const StorePointer& store, const RankEnvironment& env) {
  const Route route = route_to(env.master_host, env.master_port);
  if (route.local.empty()) {
    throw Error(format(
        "rank {}: no network leads to {} (MASTER_ADDR); name the interface in GLOO_SOCKET_IFNAME",
        env.rank, env.master_host));
  }
  const auto key = [](std::int64_t rank) { return format("address/{}", rank); };
  store->set(key(env.rank), route.loopback() ? std::string("-") : route.remote);
  if (!route.loopback()) {
    return route.local;
  }
  for (std::int64_t rank = 0; rank < env.world; ++rank) {
    if (const std::string known = text_of(store->get(key(rank))); known != "-") {
      return known;
    }
  }
  return route.local;  // one host
}

std::shared_ptr<gloo::transport::Device> gloo_device(const StorePointer& store,
                                                     const RankEnvironment& env) {
  if (const char* const name = std::getenv("GLOO_SOCKET_IFNAME"); name != nullptr && *name != 0) {
    try {
      return c10d::ProcessGroupGloo::createDeviceForInterface(name);
    } catch (const std::exception& error) {
      throw ConfigError(format(
          "GLOO_SOCKET_IFNAME={}: cannot be used ({}); give one interface of this host as `ip "
          "address` lists them, or leave the variable unset",
          name, first_line(error.what())));
    }
  }
  const std::string address = reachable_address(store, env);
  try {
    return c10d::ProcessGroupGloo::createDeviceForHostname(address);
  } catch (const std::exception& error) {
    throw Error(format(
        "rank {}: other hosts reach {} at {}, but this host cannot listen there ({}); name the "
        "interface in GLOO_SOCKET_IFNAME on every host",
        env.rank, env.master_host, address, first_line(error.what())));
  }
}

BackendPointer make_gloo(const StorePointer& store, const RankEnvironment& env, double timeout_s) {
  auto options = c10d::ProcessGroupGloo::Options::create(to_milliseconds(timeout_s));
  options->devices.push_back(gloo_device(store, env));
  options->threads = 2;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>("gloo", store), static_cast<int>(env.rank),
      static_cast<int>(env.world), options);
}
#endif

// The exchange of a device's own tensors, made by the plug-in that serves it; null: it has none.
BackendPointer make_device_group(const torch::Device& device, const StorePointer& store,
                                 const RankEnvironment& env, double timeout_s) {
  const NeedleDevicePlugin* const plugin = device.is_cpu() ? nullptr : plugin_of(device.type());
  if (plugin == nullptr || plugin->create_group == nullptr) {
    return {};
  }
  const auto own_store = c10::make_intrusive<c10d::PrefixStore>(plugin->device, store);
  const NeedleGroupRequest request{.store = static_cast<c10d::Store*>(own_store.get()),
                                   .rank = static_cast<std::int32_t>(env.rank),
                                   .size = static_cast<std::int32_t>(env.world),
                                   .device_index = device.index(),
                                   .timeout_s = timeout_s};
  std::array<char, 1024> error{};
  void* const group = plugin->create_group(&request, error.data(), error.size());
  error.back() = '\0';
  if (group == nullptr) {
    throw Error(format("rank {}: device plug-in {}: no process group: {}", env.rank, plugin->name,
                       error.front() != '\0' ? error.data() : "no reason given"));
  }
  return BackendPointer::reclaim(static_cast<c10d::Backend*>(group));
}

}  // namespace

struct Ranks::Impl {
  RankEnvironment env;
  RanksOptions options;
  StorePointer store;
  BackendPointer host_group;    // Gloo
  BackendPointer device_group;  // of the device, if it has one of its own
  std::unique_ptr<RankMonitor> monitor;
  std::unique_ptr<SharedExchange> shared;
  bool failed = false;
  double waited_s = 0.0;  // since the last finished_step
  Clock::time_point step_start = Clock::now();

  BackendPointer group_of(const torch::Tensor& tensor) const {
    return tensor.is_cpu() || !device_group ? host_group : device_group;
  }
  bool through_host(const torch::Tensor& tensor) const { return !tensor.is_cpu() && !device_group; }

  bool through_shared(const torch::Tensor& tensor) const { return shared && tensor.is_cpu(); }

  [[noreturn]] void fail(const std::string& what) {
    failed = true;
    // A connection breaks at once when a process dies; who it was shows when its beats stay away.
    const auto verdict = monitor->diagnose(options.silence_s + 2.0 * options.beat_s + 2.0);
    throw Error(format("rank {} cannot go on: {}", env.rank,
                       verdict.value_or("an exchange with the other ranks failed: " + what)));
  }

  // Looks up now and then whether waiting still makes sense. The work of a device's group only lets
  // the stream wait; its own watchdog ends it.
  void wait(const WorkPointer& work, bool on_stream = false) {
    const auto start = Clock::now();
    if (on_stream) {
      work->wait();
      return;
    }
    const auto slice = std::chrono::milliseconds(200);
    for (;;) {
      try {
        work->wait(slice);
        break;
      } catch (const std::exception& error) {
        if (work->isCompleted() && !work->isSuccess()) {
          fail(first_line(error.what()));
        }
        if (work->isCompleted()) {
          break;
        }
        look_up();
      }
    }
    waited_s += std::chrono::duration<double>(Clock::now() - start).count();
  }

  // Throws if waiting makes no sense any more.
  void look_up() {
    if (const auto verdict = monitor->failure()) {
      failed = true;
      throw Error(format("rank {} cannot go on: {}", env.rank, *verdict));
    }
  }

  void pass_collective() {
    if (failed) {
      throw Error(format("rank {}: an exchange after one that failed", env.rank));
    }
    monitor->passed_collective();
  }

  // Shared memory, if the settings allow and every rank can.
  void share_memory(const torch::Device& device) {
    if (options.exchange == ExchangeKind::kGloo) {
      return;
    }
    const std::string refusal = !device.is_cpu() ? format("its tensors are on {}", device.str())
                                : env.local_world != env.world ? "not all ranks are on its host"
                                                               : "";
    const SharedNotices notices{
        .post = [this](const std::string& key, const std::string& text) { store->set(key, text); },
        .await = [this](const std::string& key) { return text_of(store->get(key)); }};
    std::string reason;
    shared = SharedExchange::join(env.rank, env.world, refusal, notices,
                                  {.passed_collective = [this] { pass_collective(); },
                                   .look_up = [this] { look_up(); },
                                   .waited = [this](double seconds) { waited_s += seconds; }},
                                  reason);
    if (shared == nullptr && options.exchange == ExchangeKind::kShared) {
      throw Error(
          format("train.exchange=shared: the ranks share no memory ({}); set it to auto", reason));
    }
    if (shared == nullptr && refusal.empty()) {
      log_info("the ranks share no memory ({}) and exchange through Gloo", reason);
    }
  }

  template <typename Start>
  WorkPointer begin(const Start& start) {
    pass_collective();
    try {
      return start();
    } catch (const c10::Error& error) {
      fail(first_line(error.what_without_backtrace()));
    }
  }
};

namespace {

// Waits, and brings what went through host memory back to its device.
template <typename Impl>
class GroupExchange : public Exchange {
 public:
  GroupExchange(Impl& impl, WorkPointer work, torch::Tensor host, torch::Tensor target)
      : impl_(impl), work_(std::move(work)), host_(std::move(host)), target_(std::move(target)) {}
  void wait() override {
    impl_.wait(work_, !host_.is_cpu());
    if (target_.defined()) {
      target_.copy_(host_);
    }
  }

 private:
  Impl& impl_;
  WorkPointer work_;
  torch::Tensor host_;    // keeps the tensor alive while it is under way
  torch::Tensor target_;  // undefined: it is `host_` itself
};

}  // namespace

Ranks::Ranks(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

std::unique_ptr<Ranks> Ranks::join(const RankEnvironment& environment, const torch::Device& device,
                                   const RanksOptions& options) {
  if (environment.world == 1) {
    return nullptr;
  }
#ifndef USE_C10D_GLOO
  throw ConfigError(
      "this program was built without Gloo, which several processes need: install libgloo-dev and "
      "configure again");
#else
  auto impl = std::make_unique<Impl>();
  impl->env = environment;
  impl->options = options;
  impl->store = connect(environment, std::max(options.silence_s, 60.0), /*serve=*/true);
  RankMonitorOptions watch{
      .beat_s = options.beat_s, .silence_s = options.silence_s, .progress_s = options.progress_s};
  if (environment.hosted_store) {
    watch.board_owner = "the launcher's store";
  }
  if (environment.rank == 0) {
    watch.on_slow = [](const std::string& text) { log_warning("{}", text); };
  }
  // A connection of its own: the monitor must not wait behind a rendezvous.
  impl->monitor = std::make_unique<RankMonitor>(
      std::make_unique<StoreBoard>(connect(environment, options.silence_s, /*serve=*/false)),
      environment.rank, environment.world, watch);
  try {
    const double patience = options.progress_s + options.silence_s;  // the monitor speaks first
    impl->host_group = make_gloo(impl->store, environment, patience);
    impl->device_group = make_device_group(device, impl->store, environment, patience);
    impl->share_memory(device);
  } catch (const c10::Error& error) {
    const auto verdict = impl->monitor->failure();
    throw Error(format("rank {}: the ranks could not meet: {}", environment.rank,
                       verdict.value_or(first_line(error.what_without_backtrace()))));
  }
  if (!device.is_cpu() && !impl->device_group) {
    log_info("{} has no process group here: ranks exchange through host memory", device.str());
  }
  return std::unique_ptr<Ranks>(new Ranks(std::move(impl)));
#endif
}

Ranks::~Ranks() {
  if (impl_->failed) {
    // Its threads may be stuck in an exchange that never ends; the process is about to.
    (void)impl_->host_group.release();
    (void)impl_->device_group.release();
    return;
  }
  impl_->monitor->post_end();
  if (is_first() && !impl_->env.hosted_store) {  // the store ends with this process
    impl_->monitor->others_ended(10.0);
  }
}

std::int64_t Ranks::rank() const { return impl_->env.rank; }
std::int64_t Ranks::world() const { return impl_->env.world; }
const RankEnvironment& Ranks::environment() const { return impl_->env; }
SharedExchange* Ranks::shared() { return impl_->shared.get(); }

std::string Ranks::exchange() const {
  return impl_->shared         ? "shared"
         : impl_->device_group ? impl_->device_group->getBackendName()
                               : "gloo";
}

void Ranks::sum(torch::Tensor& tensor) {
  if (impl_->through_shared(tensor)) {
    const auto take = [&](auto* numbers) {
      impl_->shared->sum(std::span(numbers, static_cast<std::size_t>(tensor.numel())));
    };
    switch (tensor.scalar_type()) {
      case torch::kFloat32:
        return take(tensor.data_ptr<float>());
      case torch::kFloat64:
        return take(tensor.data_ptr<double>());
      case torch::kInt64:
        return take(tensor.data_ptr<std::int64_t>());
      default:
        throw Error(format("ranks sum no {}", c10::toString(tensor.scalar_type())));
    }
  }
  torch::Tensor host = impl_->through_host(tensor) ? tensor.cpu() : tensor;
  std::vector<torch::Tensor> tensors{host};
  const auto group = impl_->group_of(tensor);
  impl_->wait(impl_->begin([&] { return group->allreduce(tensors); }), !host.is_cpu());
  if (impl_->through_host(tensor)) {
    tensor.copy_(host);
  }
}

PendingExchange Ranks::start_sum_at(torch::Tensor& tensor, std::int64_t root) {
  const bool staged = impl_->through_host(tensor);
  torch::Tensor host = staged ? tensor.cpu() : tensor;
  std::vector<torch::Tensor> tensors{host};
  c10d::ReduceOptions options;
  options.rootRank = static_cast<int>(root);
  const auto group = impl_->group_of(tensor);
  auto work = impl_->begin([&] { return group->reduce(tensors, options); });
  const bool bring_back = staged && root == rank();
  return std::make_unique<GroupExchange<Impl>>(*impl_, std::move(work), host,
                                               bring_back ? tensor : torch::Tensor());
}

PendingExchange Ranks::start_broadcast(torch::Tensor& tensor, std::int64_t root) {
  const bool staged = impl_->through_host(tensor);
  torch::Tensor host = staged ? tensor.cpu() : tensor;
  std::vector<torch::Tensor> tensors{host};
  c10d::BroadcastOptions options;
  options.rootRank = static_cast<int>(root);
  const auto group = impl_->group_of(tensor);
  auto work = impl_->begin([&] { return group->broadcast(tensors, options); });
  const bool bring_back = staged && root != rank();
  return std::make_unique<GroupExchange<Impl>>(*impl_, std::move(work), host,
                                               bring_back ? tensor : torch::Tensor());
}

void Ranks::broadcast(torch::Tensor& tensor, std::int64_t root) {
  if (impl_->through_shared(tensor)) {
    impl_->shared->broadcast({static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()}, root);
    return;
  }
  start_broadcast(tensor, root)->wait();
}

std::string Ranks::broadcast(const std::string& bytes, std::int64_t root) {
  auto size = torch::tensor({static_cast<std::int64_t>(bytes.size())}, torch::kInt64);
  broadcast(size, root);
  std::string result = rank() == root ? bytes : std::string();
  result.resize(static_cast<std::size_t>(size.item<std::int64_t>()));
  if (!result.empty()) {
    auto view = torch::from_blob(result.data(), {size.item<std::int64_t>()}, torch::kUInt8);
    broadcast(view, root);
  }
  return result;
}

std::vector<std::string> Ranks::gather(const std::string& bytes) {
  std::vector<std::string> all;
  for (std::int64_t root = 0; root < world(); ++root) {
    all.push_back(broadcast(root == rank() ? bytes : std::string(), root));
  }
  return all;
}

void Ranks::barrier() {
  auto nothing = torch::zeros({1});
  sum(nothing);
}

void Ranks::one_per_host_first(const std::function<void()>& work) {
  const bool first = impl_->env.local_rank == 0;
  if (first) {
    work();
  }
  barrier();
  if (!first) {
    work();
  }
}

void Ranks::finished_step() {
  const auto now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - impl_->step_start).count();
  impl_->monitor->worked(std::max(elapsed - impl_->waited_s, 1e-6));
  impl_->step_start = now;
  impl_->waited_s = 0.0;
}

void Ranks::report_failure(const std::string& message) noexcept {
  try {
    if (!impl_->failed) {
      impl_->failed = true;
      impl_->monitor->post_failure(message);
    }
  } catch (...) {  // the others will notice the silence
  }
}

std::string device_of_rank(const std::string& name, const RankEnvironment& environment) {
  if (environment.world == 1 || name.find(':') != std::string::npos) {
    return name;
  }
  const torch::Device device = choose_device(name);
  return device.is_cpu()
             ? "cpu"
             : torch::Device(device.type(), static_cast<c10::DeviceIndex>(environment.local_rank))
                   .str();
}

}  // namespace needle
