// Any bytes as a file: opening refuses or every tensor's bytes can be read.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fuzz-safetensors-" + std::to_string(getpid()));
  needle::write_file_atomic(path, std::string_view(reinterpret_cast<const char*>(data), size));
  try {
    const needle::SafetensorsFile file(path);
    volatile unsigned sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      for (const std::byte byte : tensor.bytes) {
        sum = sum + static_cast<unsigned>(byte);
      }
    }
  } catch (const needle::Error&) {
  }
  return 0;
}
