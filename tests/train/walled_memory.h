// The tests' device (walled_device.cpp): its memory, which the CPU may look at only in a Passage,
// pinned memory of the host, and copies to the host that arrive when somebody waits for them.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include "tests/train/walled_device.h"

namespace walled {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;

extern WalledCounts counts;
extern thread_local c10::DeviceIndex current_device;

struct Recording;
extern Recording* recording;  // work is being recorded

// Kernels of all threads, one at a time: the autograd engine has a thread for each device.
std::recursive_mutex& gate();

// Opens the wall of some blocks until the end of the scope. Scopes may lie within each other.
class Passage {
 public:
  Passage();
  ~Passage();
  Passage(const Passage&) = delete;
  Passage& operator=(const Passage&) = delete;

  void open(const at::Tensor& tensor);

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  std::vector<std::pair<const char*, std::size_t>> opened_;
};

// Pinned memory is ordinary memory that is known.
bool is_pinned(const void* data);

// Copies to pinned memory are counted from 1; until one has arrived, `to` holds 0xff bytes.
void copy_later(const at::Tensor& to, at::Tensor values);
std::uint64_t copies_begun();
std::uint64_t oldest_copy();  // that has not arrived; 0: all have
void arrive(std::uint64_t up_to);
void wait_for(std::uint64_t up_to);  // arrive, counted; refused while work is recorded

void register_allocators();

}  // namespace walled
