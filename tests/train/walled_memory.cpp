// The memory behind the wall, pinned memory, and copies that arrive later.
#include "tests/train/walled_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include <sys/mman.h>
#include <unistd.h>

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace walled {

WalledCounts counts;
thread_local c10::DeviceIndex current_device = 0;
Recording* recording = nullptr;

std::recursive_mutex& gate() {
  static std::recursive_mutex mutex;
  return mutex;
}

namespace {

std::size_t page_round(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

// Start of each block -> its size, in whole pages.
std::map<const char*, std::size_t>& blocks() {
  static std::map<const char*, std::size_t> instance;
  return instance;
}

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

// How often each block is open.
std::map<const char*, int>& depth() {
  static std::map<const char*, int> instance;
  return instance;
}

// Pinned memory is ordinary memory that is known.
std::map<const char*, std::size_t>& pinned() {
  static std::map<const char*, std::size_t> instance;
  return instance;
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

struct Arrival {
  std::uint64_t number;
  at::Tensor to;  // on the host, pinned
  at::Tensor values;
};
std::vector<Arrival>& arrivals() {
  static std::vector<Arrival> instance;
  return instance;
}
std::uint64_t begun = 0;

}  // namespace

Passage::Passage() : lock_(gate()) {}

Passage::~Passage() {
  for (const auto& [start, size] : opened_) {
    if (--depth()[start] == 0) {
      mprotect(const_cast<char*>(start), size, PROT_NONE);
      depth().erase(start);
    }
  }
}

void Passage::open(const at::Tensor& tensor) {
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

bool is_pinned(const void* data) {
  const std::lock_guard lock(gate());
  auto next = pinned().upper_bound(static_cast<const char*>(data));
  if (next == pinned().begin()) {
    return false;
  }
  --next;
  return static_cast<const char*>(data) < next->first + next->second;
}

std::uint64_t copies_begun() { return begun; }

std::uint64_t oldest_copy() { return arrivals().empty() ? 0 : arrivals().front().number; }

void copy_later(const at::Tensor& to, at::Tensor values) {
  arrivals().push_back({.number = ++begun, .to = to, .values = std::move(values)});
  std::memset(to.data_ptr(), 0xff, to.nbytes());
}

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

void wait_for(std::uint64_t up_to) {
  const std::lock_guard lock(gate());
  TORCH_CHECK(recording == nullptr,
              "walled device: waiting is not permitted while work is recorded");
  ++counts.waits;
  arrive(up_to);
}

void register_allocators() {
  static WalledAllocator allocator;
  static PinnedAllocator pinned_allocator;
  c10::SetAllocator(kType, &allocator);
  at::setHostAllocator(kType, &pinned_allocator, /*priority=*/1);
}

}  // namespace walled
