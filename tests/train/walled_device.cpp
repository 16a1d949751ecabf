// A device outside of the program's tree, for tests: a plug-in whose memory lies behind a wall.
//
// "walled" registers PrivateUse1 with LibTorch. Its memory is mapped without any right; only its
// own kernels may look, each for as long as it runs, so a stray read or write of the CPU ends the
// process (SIGSEGV). Operators are LibTorch's CPU kernels over that memory. There are two devices,
// and a kernel refuses tensors of both. What a real accelerator would do later is done later here:
// a copy to pinned host memory leaves 0xff bytes (NaN) until somebody waits for it, and recorded
// work (graphs) runs only when it is replayed. Copies, waits and kernels are counted.
//
// Environment: WALLED_REPORT=FILE writes the counts there at the end of the process, WALLED_ERROR
// makes the plug-in refuse, WALLED_BFLOAT16 makes `auto` compute in bfloat16, WALLED_FAULT=N makes
// the process's kernels fail from N on.
#include "tests/train/walled_device.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/torch.h>

#include "needle/train/device_plugin_api.h"

#include "tests/train/walled_kernels.h"
#include "tests/train/walled_memory.h"

namespace walled {
namespace {

struct WalledGuard final : c10::impl::DeviceGuardImplInterface {
  WalledGuard() = default;
  explicit WalledGuard(c10::DeviceType type) { TORCH_CHECK(type == kType); }
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override { return {kType, current_device}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "walled device: there is no ", device.str());
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current_device = device.has_index() ? device.index() : current_device;
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*high*/) const override {
    return getStream(device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, stream.device());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  bool queryStream(const c10::Stream& /*stream*/) const override { return oldest_copy() == 0; }
  void synchronizeStream(const c10::Stream& /*stream*/) const override { wait_for(copies_begun()); }
  void synchronizeDevice(c10::DeviceIndex /*index*/) const override { wait_for(copies_begun()); }
  void record(void** event, const c10::Stream& /*stream*/, c10::DeviceIndex /*index*/,
              c10::EventFlag /*flag*/) const override {
    if (*event == nullptr) {
      *event = new std::uint64_t();
    }
    *static_cast<std::uint64_t*>(*event) = copies_begun();
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* event) const override {
    return event == nullptr || oldest_copy() == 0 ||
           oldest_copy() > *static_cast<std::uint64_t*>(event);
  }
  void synchronizeEvent(void* event) const override {
    wait_for(event != nullptr ? *static_cast<std::uint64_t*>(event) : 0);
  }
  void destroyEvent(void* event, c10::DeviceIndex /*index*/) const noexcept override {
    delete static_cast<std::uint64_t*>(event);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, WalledGuard)

struct WalledGenerator final : at::CPUGeneratorImpl {
  explicit WalledGenerator(c10::DeviceIndex index) {
    device_ = c10::Device(kType, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

struct WalledHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current_device = index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return std::exchange(current_device, index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    static const std::vector<at::Generator> generators = [] {
      std::vector<at::Generator> made;
      for (c10::DeviceIndex i = 0; i < kDevices; ++i) {
        made.push_back(at::make_generator<WalledGenerator>(i));
      }
      return made;
    }();
    return generators.at(static_cast<std::size_t>(index < 0 ? current_device : index));
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getHostAllocator(kType); }
};

// A process group of its own: everything through the store.
class DoneWork final : public c10d::Work {
 public:
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(std::chrono::milliseconds /*timeout*/) override { return true; }
};

class StoreGroup final : public c10d::Backend {
 public:
  StoreGroup(c10::intrusive_ptr<c10d::Store> store, int rank, int size)
      : Backend(rank, size), store_(std::move(store)) {}
  const std::string getBackendName() const override { return "walled"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& /*options*/) override {
    const std::string key = next_key();
    post(key, tensors.at(0));
    sum(key, tensors.at(0));
    return done();
  }
  c10::intrusive_ptr<c10d::Work> reduce(std::vector<at::Tensor>& tensors,
                                        const c10d::ReduceOptions& options) override {
    const std::string key = next_key();
    post(key, tensors.at(0));
    if (getRank() == options.rootRank) {
      sum(key, tensors.at(0));
    }
    return done();
  }
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    const std::string key = next_key();
    if (getRank() == options.rootRank) {
      post(key, tensors.at(0));
    } else {
      Passage passage;
      passage.open(tensors.at(0));
      const at::Tensor host = as_host(tensors.at(0));
      host.copy_(read(key, static_cast<int>(options.rootRank), host));
    }
    return done();
  }

 private:
  static c10::intrusive_ptr<c10d::Work> done() {
    ++counts.exchanges;
    return c10::make_intrusive<DoneWork>();
  }
  std::string next_key() { return std::to_string(next_++) + "/"; }
  void post(const std::string& key, const at::Tensor& tensor) {
    TORCH_CHECK(is_walled(tensor) && tensor.is_contiguous());
    Passage passage;
    passage.open(tensor);
    const at::Tensor host = as_host(tensor);
    const auto* const bytes = static_cast<const std::uint8_t*>(host.const_data_ptr());
    store_->set(key + std::to_string(getRank()),
                std::vector<std::uint8_t>(bytes, bytes + host.nbytes()));
  }
  at::Tensor read(const std::string& key, int rank, const at::Tensor& like) {
    const auto bytes = store_->get(key + std::to_string(rank));
    at::Tensor values = at::empty(like.sizes(), like.options());
    TORCH_CHECK(bytes.size() == values.nbytes());
    std::memcpy(values.data_ptr(), bytes.data(), bytes.size());
    return values;
  }
  void sum(const std::string& key, const at::Tensor& tensor) {
    at::Tensor total;
    for (int rank = 0; rank < getSize(); ++rank) {
      at::Tensor one = read(key, rank, at::empty(tensor.sizes(), tensor.scalar_type()));
      total = rank == 0 ? one : total + one;
    }
    Passage passage;
    passage.open(tensor);
    as_host(tensor).copy_(total);
  }
  c10::intrusive_ptr<c10d::Store> store_;
  std::int64_t next_ = 0;
};

void* create_group(const NeedleGroupRequest* request, char* error, std::size_t error_size) {
  try {
    auto store =
        c10::intrusive_ptr<c10d::Store>::reclaim_copy(static_cast<c10d::Store*>(request->store));
    auto group = c10::make_intrusive<StoreGroup>(std::move(store), request->rank, request->size);
    return static_cast<c10d::Backend*>(group.release());
  } catch (const std::exception& failure) {
    std::strncpy(error, failure.what(), error_size - 1);
    return nullptr;
  }
}

void write_report() {
  if (const char* const path = std::getenv("WALLED_REPORT")) {
    std::ofstream(path) << "{\"copies_in\": " << counts.copies_in
                        << ", \"waiting_copies_in\": " << counts.waiting_copies_in
                        << ", \"copies_out\": " << counts.copies_out
                        << ", \"waiting_copies_out\": " << counts.waiting_copies_out
                        << ", \"waits\": " << counts.waits << ", \"kernels\": " << counts.kernels
                        << ", \"replays\": " << counts.replays
                        << ", \"exchanges\": " << counts.exchanges << "}\n";
  }
}

}  // namespace
}  // namespace walled

extern "C" {

const WalledCounts* walled_counts() { return &walled::counts; }

const NeedleDevicePlugin* needle_device_plugin(const NeedleDeviceHost* host, char* error,
                                               size_t error_size) {
  static NeedleDevicePlugin plugin{.version = NEEDLE_DEVICE_PLUGIN_VERSION,
                                   .name = "the tests' device",
                                   .device = "walled",
                                   .bfloat16 = std::getenv("WALLED_BFLOAT16") != nullptr,
                                   .create_group = &walled::create_group};
  if (const char* const reason = std::getenv("WALLED_ERROR")) {
    std::strncpy(error, reason, error_size - 1);
    return nullptr;
  }
  if (host->version != NEEDLE_DEVICE_PLUGIN_VERSION) {
    std::strncpy(error, "the program has another version of the interface", error_size - 1);
    return nullptr;
  }
  static walled::WalledHooks hooks;
  walled::register_allocators();
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::register_privateuse1_backend("walled");
  std::atexit(&walled::write_report);
  return &plugin;
}

}  // extern "C"
