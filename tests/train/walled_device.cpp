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

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/accelerator/Graph.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>
#include <torch/torch.h>

#include "needle/train/device_plugin_api.h"

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;

WalledCounts counts;

// Kernels of all threads, one at a time: the autograd engine has a thread for each device.
std::recursive_mutex& gate() {
  static std::recursive_mutex mutex;
  return mutex;
}

// --- memory
// ---------------------------------------------------------------------------------------

std::size_t page_round(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

// Start of each block -> its size, in whole pages.
std::map<const char*, std::size_t>& blocks() {
  static std::map<const char*, std::size_t> instance;
  return instance;
}

thread_local c10::DeviceIndex current_device = 0;
c10::CachingDeviceAllocator::DeviceStats memory[kDevices];
constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);

struct Block {
  char* start;
  std::size_t size;
  c10::DeviceIndex device;
};

void free_block(void* context) {
  const std::lock_guard lock(gate());
  const auto* block = static_cast<Block*>(context);
  blocks().erase(block->start);
  munmap(block->start, block->size);  // a use after this faults, too
  memory[block->device].reserved_bytes[kAll].decrease(block->size);
  delete block;
}

struct WalledAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device device(kType, current_device);
    if (bytes == 0) {
      return {nullptr, device};
    }
    const std::lock_guard lock(gate());
    const std::size_t size = page_round(bytes);
    auto* start = static_cast<char*>(
        mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    TORCH_CHECK(start != MAP_FAILED, "walled device: out of memory, ", bytes, " bytes wanted");
    blocks()[start] = size;
    memory[current_device].reserved_bytes[kAll].increase(size);
    return {start, new Block{start, size, current_device}, &free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) const override {
    TORCH_CHECK(false, "walled device: copy_data is for the host");
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t /*pool*/) override {}
  void recordStream(const c10::DataPtr& /*data*/, c10::Stream /*stream*/) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const std::lock_guard lock(gate());
    return memory[device];
  }
  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    memory[device].reserved_bytes[kAll].reset_peak();
  }
};

// Opens the wall of some blocks until the end of the scope. Scopes may lie within each other.
class Passage {
 public:
  Passage() : lock_(gate()) {}
  ~Passage() {
    for (const auto& [start, size] : opened_) {
      if (--depth()[start] == 0) {
        mprotect(const_cast<char*>(start), size, PROT_NONE);
        depth().erase(start);
      }
    }
  }
  Passage(const Passage&) = delete;
  Passage& operator=(const Passage&) = delete;

  void open(const at::Tensor& tensor) {
    const auto* const data = static_cast<const char*>(tensor.storage().data());
    if (data == nullptr) {
      return;
    }
    const auto block = blocks().find(data);
    TORCH_CHECK(block != blocks().end(), "walled device: memory of somebody else");
    if (depth()[data]++ == 0) {
      TORCH_CHECK(mprotect(const_cast<char*>(data), block->second, PROT_READ | PROT_WRITE) == 0,
                  "walled device: mprotect failed");
    }
    opened_.emplace_back(*block);
  }

 private:
  static std::map<const char*, int>& depth() {
    static std::map<const char*, int> instance;
    return instance;
  }
  std::lock_guard<std::recursive_mutex> lock_;
  std::vector<std::pair<const char*, std::size_t>> opened_;
};

// Pinned memory is ordinary memory that is known.
std::map<const char*, std::size_t>& pinned() {
  static std::map<const char*, std::size_t> instance;
  return instance;
}
bool is_pinned(const void* data) {
  const std::lock_guard lock(gate());
  auto next = pinned().upper_bound(static_cast<const char*>(data));
  if (next == pinned().begin()) {
    return false;
  }
  --next;
  return static_cast<const char*>(data) < next->first + next->second;
}
void free_pinned(void* data) {
  const std::lock_guard lock(gate());
  pinned().erase(static_cast<const char*>(data));
  std::free(data);
}
struct PinnedAllocator final : at::HostAllocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const std::lock_guard lock(gate());
    void* const data = std::malloc(std::max<std::size_t>(bytes, 1));
    pinned()[static_cast<char*>(data)] = bytes;
    ++counts.pinned;
    return {data, data, &free_pinned, c10::kCPU};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool record_event(void* /*data*/, void* /*context*/, c10::Stream /*stream*/) override {
    return true;
  }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

// --- copies that arrive later
// ---------------------------------------------------------------------

struct Arrival {
  std::uint64_t number;
  at::Tensor to;  // on the host, pinned
  at::Tensor values;
};
std::vector<Arrival>& arrivals() {
  static std::vector<Arrival> instance;
  return instance;
}
std::uint64_t copies_begun = 0;

void arrive(std::uint64_t up_to) {
  const std::lock_guard lock(gate());
  std::erase_if(arrivals(), [&](Arrival& arrival) {
    if (arrival.number > up_to) {
      return false;
    }
    arrival.to.copy_(arrival.values);
    return true;
  });
}

struct Recording;
Recording* recording = nullptr;  // work is being recorded

void wait_for(std::uint64_t up_to) {
  const std::lock_guard lock(gate());
  TORCH_CHECK(recording == nullptr,
              "walled device: waiting is not permitted while work is recorded");
  ++counts.waits;
  arrive(up_to);
}

// --- what LibTorch asks of every device
// -----------------------------------------------------------

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
  bool queryStream(const c10::Stream& /*stream*/) const override { return arrivals().empty(); }
  void synchronizeStream(const c10::Stream& /*stream*/) const override { wait_for(copies_begun); }
  void synchronizeDevice(c10::DeviceIndex /*index*/) const override { wait_for(copies_begun); }
  void record(void** event, const c10::Stream& /*stream*/, c10::DeviceIndex /*index*/,
              c10::EventFlag /*flag*/) const override {
    if (*event == nullptr) {
      *event = new std::uint64_t();
    }
    *static_cast<std::uint64_t*>(*event) = copies_begun;
  }
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* event) const override {
    return event == nullptr || arrivals().empty() ||
           arrivals().front().number > *static_cast<std::uint64_t*>(event);
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

// --- kernels
// --------------------------------------------------------------------------------------

bool is_walled(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kType;
}

// The same values as a tensor of the CPU, to be used while a passage is open.
at::Tensor as_host(const at::Tensor& tensor) {
  auto* const data = static_cast<char*>(const_cast<void*>(tensor.storage().data()));
  const auto options = tensor.options().device(c10::kCPU).pinned_memory(false);
  if (data == nullptr) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  return at::from_blob(
      data + tensor.storage_offset() * static_cast<std::int64_t>(tensor.element_size()),
      tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty_like_host(const at::Tensor& host, c10::Device device) {
  return at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
}

// Work that was recorded: operators with their arguments and results as they were.
struct Step {
  c10::OperatorHandle op;
  std::vector<c10::IValue> arguments;
  std::vector<c10::IValue> results;
};
struct Recording {
  std::vector<Step> steps;
};

std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
  if (value.isTensor()) {
    return {value.toTensor()};
  }
  if (value.isTensorList()) {
    return value.toTensorVector();
  }
  std::vector<at::Tensor> found;
  if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector()) {
      found.push_back(one.value_or(at::Tensor()));
    }
  }
  return found;
}

// `value` with every walled tensor replaced.
template <typename Replace>
c10::IValue replace_tensors(const c10::IValue& value, const Replace& replace) {
  if (value.isTensor()) {
    return is_walled(value.toTensor()) ? replace(value.toTensor()) : value;
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& one : value.toTensorVector()) {
      list.push_back(is_walled(one) ? replace(one) : one);
    }
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector()) {
      list.push_back(one && is_walled(*one) ? std::optional<at::Tensor>(replace(*one)) : one);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == kType) {
    return c10::Device(c10::kCPU);
  }
  if (value.isGenerator() && value.toGenerator().device().type() == kType) {
    return c10::IValue();
  }
  return value;
}

// The device of all walled arguments; a scalar of the CPU may be among them, nothing else of it.
c10::Device check_devices(const c10::OperatorHandle& op,
                          const std::vector<c10::IValue>& arguments) {
  std::optional<c10::Device> device;
  for (const c10::IValue& argument : arguments) {
    for (const at::Tensor& tensor : tensors_of(argument)) {
      if (!tensor.defined() || (tensor.device().is_cpu() && tensor.dim() == 0)) {
        continue;
      }
      TORCH_CHECK(is_walled(tensor), "walled device: ", op.schema(), " was given a tensor on ",
                  tensor.device().str());
      TORCH_CHECK(!device || *device == tensor.device(), "walled device: ", op.schema(),
                  " was given tensors of two devices");
      device = tensor.device();
    }
    if (!device && argument.isDevice() && argument.toDevice().type() == kType) {
      device = argument.toDevice();
    }
  }
  return device.value_or(c10::Device(kType, current_device));
}

const at::Tensor& resize_tensor(const at::Tensor& self, c10::IntArrayRef size,
                                std::optional<c10::MemoryFormat> format);

// Runs the CPU's kernel over `arguments`. `practice`: on copies, to learn what the results look
// like. An empty tensor that the kernel writes to may grow ("out").
std::vector<c10::IValue> run_on_host(const c10::OperatorHandle& op,
                                     const std::vector<c10::IValue>& arguments, Passage& passage,
                                     bool practice) {
  torch::jit::Stack stack;
  std::vector<std::pair<at::Tensor, at::Tensor>> may_grow;
  for (const c10::IValue& argument : arguments) {
    stack.push_back(replace_tensors(argument, [&](const at::Tensor& tensor) {
      if (tensor.numel() == 0) {
        const auto host = at::empty(tensor.sizes(), tensor.options().device(c10::kCPU));
        may_grow.emplace_back(tensor, host);
        return host;
      }
      passage.open(tensor);
      const at::Tensor host = as_host(tensor);
      return practice ? host.clone() : host;
    }));
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  for (const auto& [tensor, host] : may_grow) {
    if (host.numel() > 0) {
      resize_tensor(tensor, host.sizes(), {});
      if (!practice) {
        passage.open(tensor);
        as_host(tensor).copy_(host);
      }
    }
  }
  return {stack.begin(), stack.end()};
}

// The argument that result `index` is, by the schema: "(a!)". -1: it is a new tensor.
std::ptrdiff_t aliased_argument(const c10::FunctionSchema& schema, std::size_t index) {
  const c10::AliasInfo* const result = schema.returns()[index].alias_info();
  if (result == nullptr) {
    return -1;
  }
  TORCH_CHECK(result->isWrite(), "walled device: ", schema, " returns a view");
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::AliasInfo* const argument = schema.arguments()[i].alias_info();
    if (argument != nullptr && *argument == *result) {
      return static_cast<std::ptrdiff_t>(i);
    }
  }
  TORCH_CHECK(false, "walled device: ", schema, " returns an unknown alias");
}

void any_operator(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const std::size_t count = schema.arguments().size();
  const std::vector<c10::IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(count),
                                           stack->end());
  torch::jit::drop(*stack, count);
  const c10::Device device = check_devices(op, arguments);
  Passage passage;
  ++counts.kernels;
  static const char* const fault = std::getenv("WALLED_FAULT");
  TORCH_CHECK(fault == nullptr || counts.kernels < std::atoll(fault), "walled device: kernel ",
              fault, " failed");
  const auto host = run_on_host(op, arguments, passage, /*practice=*/recording != nullptr);
  std::vector<c10::IValue> results;
  for (std::size_t i = 0; i < host.size(); ++i) {
    if (const std::ptrdiff_t same = aliased_argument(schema, i); same >= 0) {
      results.push_back(arguments[static_cast<std::size_t>(same)]);
      continue;
    }
    const auto bring_back = [&](const at::Tensor& tensor) {
      const at::Tensor made = empty_like_host(tensor, device);
      if (recording == nullptr) {
        passage.open(made);
        as_host(made).copy_(tensor);
      }
      return made;
    };
    if (host[i].isTensor() && host[i].toTensor().defined()) {
      results.emplace_back(bring_back(host[i].toTensor()));
    } else if (host[i].isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : host[i].toTensorVector()) {
        list.push_back(bring_back(one));
      }
      results.emplace_back(list);
    } else {
      TORCH_CHECK(recording == nullptr || host[i].isTensor() || host[i].isNone(),
                  "walled device: a value for the host while work is recorded");
      results.push_back(host[i]);
    }
  }
  if (recording != nullptr) {
    recording->steps.push_back({.op = op, .arguments = arguments, .results = results});
  }
  stack->insert(stack->end(), results.begin(), results.end());
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout> /*layout*/, std::optional<c10::Device> device,
                 std::optional<bool> /*pin*/, std::optional<c10::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, c10::GetAllocator(kType),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout> /*layout*/, std::optional<c10::Device> device,
                         std::optional<bool> /*pin*/) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// What was there stays, as far as it fits.
const at::Tensor& resize_tensor(const at::Tensor& self, c10::IntArrayRef size,
                                std::optional<c10::MemoryFormat> /*format*/) {
  const std::size_t bytes =
      (static_cast<std::size_t>(c10::multiply_integers(size) + self.storage_offset())) *
      self.element_size();
  TORCH_CHECK(recording == nullptr || self.numel() == 0 || bytes <= self.storage().nbytes(),
              "walled device: memory grows while work is recorded");
  if (bytes > self.storage().nbytes()) {
    const c10::DeviceGuard guard(self.device());
    const at::Tensor larger =
        empty({static_cast<std::int64_t>(bytes)}, c10::kByte, {}, self.device(), {}, {});
    if (self.storage().nbytes() > 0) {
      Passage passage;
      passage.open(self);
      passage.open(larger);
      std::memcpy(const_cast<void*>(larger.storage().data()), self.storage().data(),
                  self.storage().nbytes());
    }
    c10::StorageImpl* const storage = self.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(
        std::move(larger.storage().unsafeGetStorageImpl()->mutable_data_ptr()));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, std::int64_t offset,
                        c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

void refuse_while_recording(const char* what) {
  TORCH_CHECK(recording == nullptr, "walled device: ", what,
              " is not permitted while work is recorded");
}

// Between the devices' memory and the host's, and within it.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  Passage passage;
  if (is_walled(from) && is_walled(to)) {
    static const auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    TORCH_CHECK(from.device() == to.device() || recording == nullptr);
    const std::vector<c10::IValue> arguments{to, from, false};
    ++counts.kernels;
    if (recording != nullptr) {
      recording->steps.push_back({.op = copy, .arguments = arguments, .results = {}});
    } else {
      passage.open(from);
      passage.open(to);
      as_host(to).copy_(as_host(from));
    }
  } else if (is_walled(to)) {
    refuse_while_recording("a copy from the host");
    const bool waits = !(non_blocking && from.is_pinned());
    ++(waits ? counts.waiting_copies_in : counts.copies_in);
    passage.open(to);
    as_host(to).copy_(from);
  } else {
    refuse_while_recording("a copy to the host");
    passage.open(from);
    if (non_blocking && to.is_pinned() && to.is_contiguous()) {
      ++counts.copies_out;
      arrivals().push_back({.number = ++copies_begun, .to = to, .values = as_host(from).clone()});
      std::memset(to.data_ptr(), 0xff, to.nbytes());
    } else {
      ++counts.waiting_copies_out;
      arrive(copies_begun);
      const at::Tensor host = as_host(from);
      to.copy_(host);
    }
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  refuse_while_recording("reading a value");
  Passage passage;
  ++counts.waiting_copies_out;
  arrive(copies_begun);
  passage.open(self);
  return as_host(self).item();
}

// The library's fused attention has kernels for devices that it knows; this one takes the plain
// one.
std::int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                             bool) {
  return static_cast<std::int64_t>(sdp::SDPBackend::math);
}

// Recorded work.
struct WalledGraph final : at::GraphImplInterface {
  explicit WalledGraph(const at::GraphImplArgs& /*arguments*/) {}
  void capture_begin(c10::MempoolId_t /*pool*/, at::GraphCaptureMode /*mode*/) override {
    const std::lock_guard lock(gate());
    TORCH_CHECK(recording == nullptr, "walled device: recording already");
    work_.steps.clear();
    recording = &work_;
  }
  void capture_end() override {
    const std::lock_guard lock(gate());
    recording = nullptr;
  }
  void instantiate() override {}
  void replay() override {
    Passage passage;
    refuse_while_recording("replaying");
    ++counts.replays;
    for (const Step& step : work_.steps) {
      Passage inner;
      ++counts.kernels;
      const auto host = run_on_host(step.op, step.arguments, inner, /*practice=*/false);
      for (std::size_t i = 0; i < step.results.size(); ++i) {
        if (aliased_argument(step.op.schema(), i) >= 0) {
          continue;
        }
        const auto to = tensors_of(step.results[i]), from = tensors_of(host[i]);
        for (std::size_t k = 0; k < to.size(); ++k) {
          if (to[k].defined()) {
            inner.open(to[k]);
            as_host(to[k]).copy_(from[k]);
          }
        }
      }
    }
  }
  void reset() override { work_.steps.clear(); }
  c10::MempoolId_t pool() const override { return {0, 0}; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string& /*path*/) override {}

 private:
  Recording work_;
};

// --- a process group of its own: everything through the store
// ---------------------------------------

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

// --- registration
// ---------------------------------------------------------------------------------

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

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention)
}  // namespace at::native

namespace at {
C10_REGISTER_CLASS(GraphImplRegistry, WALLED, WalledGraph)  // by the name of the device
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_operator>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", resize_tensor);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
}

extern "C" {

const WalledCounts* walled_counts() { return &counts; }

const NeedleDevicePlugin* needle_device_plugin(const NeedleDeviceHost* host, char* error,
                                               size_t error_size) {
  static NeedleDevicePlugin plugin{.version = NEEDLE_DEVICE_PLUGIN_VERSION,
                                   .name = "the tests' device",
                                   .device = "walled",
                                   .bfloat16 = std::getenv("WALLED_BFLOAT16") != nullptr,
                                   .create_group = &create_group};
  if (const char* const reason = std::getenv("WALLED_ERROR")) {
    std::strncpy(error, reason, error_size - 1);
    return nullptr;
  }
  if (host->version != NEEDLE_DEVICE_PLUGIN_VERSION) {
    std::strncpy(error, "the program has another version of the interface", error_size - 1);
    return nullptr;
  }
  static WalledAllocator allocator;
  static PinnedAllocator pinned_allocator;
  static WalledHooks hooks;
  c10::SetAllocator(kType, &allocator);
  at::setHostAllocator(kType, &pinned_allocator, /*priority=*/1);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::register_privateuse1_backend("walled");
  std::atexit(&write_report);
  return &plugin;
}

}  // extern "C"
