#include "needle/train/device_plugin.h"

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include <dlfcn.h>

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "needle/core/error.h"
#include "needle/core/log.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCudaPlugin = "libneedle_cuda.so";

struct Plugins {
  std::mutex mutex;
  std::map<fs::path, const NeedleDevicePlugin*> loaded;  // by the file's own path
};
Plugins& plugins() {
  static Plugins instance;
  return instance;
}

// Symbols are global: what the next plug-in is linked with may be found in this one, and LibTorch's
// libraries refer to each other.
void* open_library(const fs::path& path) {
  dlerror();
  return dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
}

std::string last_dl_error() {
  const char* const text = dlerror();
  return text != nullptr ? text : "unknown reason";
}

const NeedleDevicePlugin& enter(const std::string& path, void* library) {
  const auto entry =
      reinterpret_cast<NeedleDevicePluginEntry>(dlsym(library, NEEDLE_DEVICE_PLUGIN_ENTRY));
  if (entry == nullptr) {
    throw ConfigError(
        format("device plug-in {}: exports no {}; it is no plug-in of this program "
               "(docs/devices.md tells how to write one)",
               path, NEEDLE_DEVICE_PLUGIN_ENTRY));
  }
  static const std::string torch_version =
      format("{}.{}.{}", TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH);
  static const NeedleDeviceHost host{.version = NEEDLE_DEVICE_PLUGIN_VERSION,
                                     .torch_version = torch_version.c_str()};
  std::array<char, 1024> error{};
  const NeedleDevicePlugin* const plugin = entry(&host, error.data(), error.size());
  error.back() = '\0';
  if (plugin == nullptr) {
    throw ConfigError(format("device plug-in {}: {}", path,
                             error.front() != '\0' ? error.data() : "it refused without a reason"));
  }
  if (plugin->version != NEEDLE_DEVICE_PLUGIN_VERSION) {
    throw ConfigError(
        format("device plug-in {}: made for version {} of the interface, this program has version "
               "{}; build both from the same sources",
               path, plugin->version, NEEDLE_DEVICE_PLUGIN_VERSION));
  }
  if (plugin->name == nullptr || plugin->device == nullptr) {
    throw ConfigError(format("device plug-in {}: has no name or names no device", path));
  }
  return *plugin;
}

void load_plugin(const std::string& path) {
  std::error_code error;
  const fs::path file = fs::canonical(path, error);
  if (error) {
    throw ConfigError(format("device plug-in {}: {}", path, error.message()));
  }
  const std::lock_guard lock(plugins().mutex);
  if (plugins().loaded.contains(file)) {
    return;
  }
  void* library = nullptr;
  try {
    library = open_library(file);
  } catch (const std::exception& failure) {  // of its static initialisers
    throw ConfigError(format("device plug-in {}: {}", path, failure.what()));
  }
  if (library == nullptr) {
    throw ConfigError(format("device plug-in {}: {}", path, last_dl_error()));
  }
  const NeedleDevicePlugin& plugin = enter(path, library);
  plugins().loaded[file] = &plugin;
  log_info("device plug-in {} ({}) serves {}", plugin.name, file, plugin.device);
}

std::vector<std::string> split_paths(std::string_view list) {
  std::vector<std::string> paths;
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(':'), list.size());
    if (end > 0) {
      paths.emplace_back(list.substr(0, end));
    }
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return paths;
}

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

fs::path torch_folder() {
  Dl_info info{};
  const auto* const inside = reinterpret_cast<const void*>(&at::globalContext);
  return dladdr(inside, &info) != 0 ? fs::path(info.dli_fname).parent_path() : fs::path();
}

}  // namespace

void load_device_plugins(std::span<const std::string> paths) {
  for (const std::string& path : split_paths(environment("NEEDLE_DEVICE_PLUGIN"))) {
    load_plugin(path);
  }
  for (const std::string& path : paths) {
    load_plugin(path);
  }
}

const NeedleDevicePlugin* plugin_of(torch::DeviceType type) {
  const std::string name = c10::DeviceTypeName(type, /*lower_case=*/true);
  const std::lock_guard lock(plugins().mutex);
  for (const auto& [path, plugin] : plugins().loaded) {
    if (plugin->device == name) {
      return plugin;
    }
  }
  return nullptr;
}

void load_cuda() {
  if (c10::impl::hasDeviceGuardImpl(torch::kCUDA)) {
    return;
  }
  const std::string given = environment("NEEDLE_TORCH_CUDA");
  const fs::path library = given.empty() ? torch_folder() / "libtorch_cuda.so" : fs::path(given);
  if (!fs::exists(library)) {
    throw ConfigError(
        format("CUDA: there is no {}: this LibTorch was built without CUDA. Install one with it "
               "(scripts/setup --gpu), or name the file in NEEDLE_TORCH_CUDA",
               library));
  }
  if (open_library(library) == nullptr) {
    throw ConfigError(
        format("CUDA: {} cannot be loaded: {}. NVIDIA's libraries come with scripts/setup --gpu; "
               "others are found through LD_LIBRARY_PATH",
               library, last_dl_error()));
  }
  log_info("LibTorch's CUDA part: {}", library);
  std::error_code ignored;
  const fs::path plugin = fs::read_symlink("/proc/self/exe", ignored).parent_path() / kCudaPlugin;
  if (fs::exists(plugin)) {
    load_plugin(plugin);
  }
}

bool has_cuda_driver() {
  static const bool present = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) != nullptr;
  return present;
}

}  // namespace needle
