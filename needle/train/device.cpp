#include "needle/train/device.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <utility>

#include <sys/resource.h>

#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "needle/core/cpu_features.h"
#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/model/kernels/tile_product.h"
#include "needle/train/device_plugin.h"

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
#define NEEDLE_DEVICE_GRAPHS 1
#endif

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

c10::DeviceIndex index_of(const torch::Device& device) {
  return device.has_index() ? device.index() : static_cast<c10::DeviceIndex>(0);
}

// Kernels of CUDA lie in a library of their own, which is looked for only when it is wanted.
void load_what_is_asked_for(std::string_view name) {
  if (name == "cuda" || name.starts_with("cuda:")) {
    try {
      load_cuda();
    } catch (const ConfigError& error) {
      throw ConfigError(
          format("device = \"{}\": {}. There is auto, {}", name, error.what(), list_devices()));
    }
  } else if (name == "auto" && has_cuda_driver()) {
    try {
      load_cuda();
    } catch (const ConfigError& error) {
      log_warning("an NVIDIA driver is installed, but: {}", error.what());
    }
  }
}

// Asked once for each type: a plug-in need not have pinned memory, and says so by throwing.
bool has_pinned_memory(torch::DeviceType type) {
  static std::array<std::optional<bool>,
                    static_cast<std::size_t>(torch::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES)>
      known;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& answer = known[static_cast<std::size_t>(type)];
  if (!answer) {
    try {
      answer = torch::empty({1}, torch::TensorOptions().pinned_memory(true)).is_pinned();
    } catch (const c10::Error&) {
      answer = false;
    }
  }
  return *answer;
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
  load_what_is_asked_for(name);
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
        format("device = \"{}\": no such name; there is auto, {} (a plug-in brings others: "
               "--device-plugin, docs/devices.md)",
               name, list_devices()));
  }
  if (device.is_cpu()) {
    return torch::kCPU;
  }
  const std::int64_t index = device.has_index() ? device.index() : 0;
  const bool known =
      std::find(kAccelerators.begin(), kAccelerators.end(), device.type()) != kAccelerators.end();
  if (device.is_cuda() && device_count(device.type()) == 0) {
    throw ConfigError(
        format("device = \"{}\": LibTorch's CUDA part is loaded, but it finds no GPU; does "
               "nvidia-smi list "
               "one? There is auto, {}",
               name, list_devices()));
  }
  if (!known || index >= device_count(device.type())) {
    throw ConfigError(format(
        "device = \"{}\" is not available with this LibTorch on this machine; there is auto, {}",
        name, list_devices()));
  }
  return {device.type(), static_cast<c10::DeviceIndex>(index)};
}

torch::ScalarType choose_compute_dtype(ComputeDtype choice, const torch::Device& device) {
  if (choice == ComputeDtype::kAuto) {
    const bool fast_bfloat16 = device.is_cpu() ? has_fast_bfloat16()
                                               : device.is_cuda() || device.is_xpu() ||
                                                     (plugin_of(device.type()) != nullptr &&
                                                      plugin_of(device.type())->bfloat16 != 0);
    return fast_bfloat16 ? torch::kBFloat16 : torch::kFloat32;
  }
  return choice == ComputeDtype::kBfloat16 ? torch::kBFloat16 : torch::kFloat32;
}

std::int64_t loss_block_rows(const torch::Device& device, torch::ScalarType factors) {
  if (device.is_cpu()) {
    return factors == torch::kBFloat16 && has_tile_products() ? 1024 : 256;
  }
  return 8192;
}

void synchronize(const torch::Device& device) {
  if (device.is_cpu()) {
    return;
  }
  try {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(index_of(device));
  } catch (const c10::Error&) {
    if (device.type() != torch::DeviceType::PrivateUse1) {
      throw;
    }
    // A backend that Python registers has no such function: a value comes after what was asked.
    torch::zeros({1}, device).item<float>();
  }
}

torch::Tensor empty_staging(torch::IntArrayRef sizes, torch::ScalarType dtype,
                            const torch::Device& device) {
  const bool pinned = !device.is_cpu() && has_pinned_memory(device.type());
  return torch::empty(sizes, torch::TensorOptions().dtype(dtype).pinned_memory(pinned));
}

torch::Tensor copy_to_device(const torch::Tensor& host, const torch::Device& device) {
  return host.to(device, /*non_blocking=*/!device.is_cpu() && host.is_pinned());
}

PendingCopy::PendingCopy(const torch::Tensor& tensor) {
  const torch::NoGradGuard no_grad;
  const torch::Device device = tensor.device();
  if (device.is_cpu()) {
    host_ = tensor.detach().clone();
    return;
  }
  host_ = empty_staging(tensor.sizes(), tensor.scalar_type(), device);
  const bool pinned = host_.is_pinned();
  host_.copy_(tensor.detach(), /*non_blocking=*/pinned);
  if (pinned) {
    done_.emplace(device.type());
    done_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }
}

torch::Tensor PendingCopy::wait() {
  NEEDLE_CHECK(pending(), "a copy that was never begun, or read already");
  if (done_) {
    done_->synchronize();
    done_.reset();
  }
  return std::move(host_);
}

#ifdef NEEDLE_DEVICE_GRAPHS
struct DeviceGraph::Impl {
  torch::Device device;
  c10::Stream stream;  // a graph cannot be recorded on the default one
  at::accelerator::Graph graph;
};

namespace {

// Ends a recording whose work threw: else whatever the device is asked to do next would belong to
// it. What is wrong with the recording itself is not news then.
void abandon(at::accelerator::Graph& graph) {
  try {
    graph.capture_end();
  } catch (const c10::Error&) {
  }
  try {
    graph.reset();
  } catch (const c10::Error&) {
  }
}

}  // namespace

bool DeviceGraph::is_available(const torch::Device& device) {
  return !device.is_cpu() && at::getAccelerator() == device.type() &&
         at::has_graph_impl(device.type());
}

DeviceGraph::DeviceGraph(const torch::Device& device, const std::function<void()>& work) {
  NEEDLE_CHECK(is_available(device), "{} cannot record its work", device.str());
  const c10::impl::VirtualGuardImpl guard(device.type());
  impl_.reset(
      new Impl{.device = device, .stream = guard.getStreamFromGlobalPool(device), .graph = {}});
  synchronize(device);
  try {
    const c10::StreamGuard on_stream(impl_->stream);
    impl_->graph.capture_begin();
    try {
      work();
    } catch (...) {
      abandon(impl_->graph);
      throw;
    }
    impl_->graph.capture_end();
  } catch (const c10::Error& error) {
    throw Error(format("{}: its work cannot be recorded: {}", device.str(),
                       error.what_without_backtrace()));
  }
}

DeviceGraph::~DeviceGraph() = default;

void DeviceGraph::replay() { impl_->graph.replay(); }
#else
struct DeviceGraph::Impl {};
bool DeviceGraph::is_available(const torch::Device& /*device*/) { return false; }
DeviceGraph::DeviceGraph(const torch::Device& device, const std::function<void()>& /*work*/) {
  NEEDLE_CHECK(false, "{}: this LibTorch cannot record a device's work", device.str());
}
DeviceGraph::~DeviceGraph() = default;
void DeviceGraph::replay() {}
#endif

MemoryUse memory_use(const torch::Device& device) {
  if (device.is_cpu()) {
    return process_memory();
  }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  auto* const allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (allocator == nullptr) {  // a plug-in's that keeps no statistics
    return {};
  }
  const auto stats = allocator->getDeviceStats(index_of(device));
  return {.current_bytes = stats.reserved_bytes[kAll].current,
          .peak_bytes = stats.reserved_bytes[kAll].peak};
#else
  return {};
#endif
}

void seed_generators(std::uint64_t seed) {
  try {
    torch::manual_seed(seed);  // the CPU's first
  } catch (const c10::Error&) {
    if (at::getAccelerator() != torch::DeviceType::PrivateUse1) {
      throw;
    }
  }
}

}  // namespace needle
