#include "needle/train/device.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <string>

#include <sys/resource.h>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "needle/core/cpu_features.h"
#include "needle/core/error.h"

namespace needle {
namespace {

// In the order in which "auto" looks. A type is here once LibTorch (or a plug-in, PrivateUse1) has
// registered itself: a CPU build of LibTorch simply has none of them.
constexpr std::array kAccelerators{torch::DeviceType::CUDA, torch::DeviceType::XPU,
                                   torch::DeviceType::MPS,  torch::DeviceType::HPU,
                                   torch::DeviceType::MTIA, torch::DeviceType::PrivateUse1};

std::int64_t device_count(torch::DeviceType type) {
  return c10::impl::hasDeviceGuardImpl(type) ? c10::impl::VirtualGuardImpl(type).deviceCount() : 0;
}

std::string list_devices() {
  std::string names;
  for (const auto& name : available_devices()) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

// "VmRSS:   123 kB" of /proc/self/status; 0 where there is no such file.
std::int64_t status_bytes(std::string_view key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) {
      return std::atoll(line.c_str() + key.size()) * 1024;
    }
  }
  return 0;
}

MemoryUse process_memory() {
  MemoryUse use{.current_bytes = status_bytes("VmRSS:"), .peak_bytes = status_bytes("VmHWM:")};
  if (use.peak_bytes == 0) {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    use.peak_bytes = static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
  }
  return use;
}

}  // namespace

std::vector<std::string> available_devices() {
  std::vector<std::string> names{"cpu"};
  for (const auto type : kAccelerators) {
    for (std::int64_t i = 0; i < device_count(type); ++i) {
      names.push_back(torch::Device(type, static_cast<c10::DeviceIndex>(i)).str());
    }
  }
  return names;
}

torch::Device choose_device(std::string_view name) {
  if (name == "auto") {
    for (const auto type : kAccelerators) {
      if (device_count(type) > 0) {
        return {type, 0};
      }
    }
    return torch::kCPU;
  }
  torch::Device device(torch::kCPU);
  try {
    device = torch::Device(std::string(name));
  } catch (const c10::Error&) {
    throw ConfigError(
        format("device = \"{}\": no such name; this machine has auto, {}", name, list_devices()));
  }
  if (device.is_cpu()) {
    return torch::kCPU;
  }
  const std::int64_t index = device.has_index() ? device.index() : 0;
  const bool known =
      std::find(kAccelerators.begin(), kAccelerators.end(), device.type()) != kAccelerators.end();
  if (!known || index >= device_count(device.type())) {
    throw ConfigError(format(
        "device = \"{}\" is not available with this LibTorch on this machine; there is auto, {}",
        name, list_devices()));
  }
  return {device.type(), static_cast<c10::DeviceIndex>(index)};
}

torch::ScalarType choose_compute_dtype(ComputeDtype choice, const torch::Device& device) {
  if (choice == ComputeDtype::kAuto) {
    const bool fast_bfloat16 =
        device.is_cpu() ? has_fast_bfloat16() : device.is_cuda() || device.is_xpu();
    return fast_bfloat16 ? torch::kBFloat16 : torch::kFloat32;
  }
  return choice == ComputeDtype::kBfloat16 ? torch::kBFloat16 : torch::kFloat32;
}

std::int64_t loss_block_rows(const torch::Device& device) { return device.is_cpu() ? 256 : 8192; }

void synchronize(const torch::Device& device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type())
        .synchronizeDevice(device.has_index() ? device.index() : static_cast<c10::DeviceIndex>(0));
  }
}

MemoryUse memory_use(const torch::Device& device) {
  if (device.is_cpu()) {
    return process_memory();
  }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto stats =
      c10::getDeviceAllocator(device.type())
          ->getDeviceStats(device.has_index() ? device.index() : static_cast<c10::DeviceIndex>(0));
  return {.current_bytes = stats.reserved_bytes[kAll].current,
          .peak_bytes = stats.reserved_bytes[kAll].peak};
#else
  return {};
#endif
}

void seed_generators(std::uint64_t seed) { torch::manual_seed(seed); }

}  // namespace needle
