// Any bytes as a weights file: refused or readable. Checksums are skipped, so that the fuzzer gets
// past them.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/quant/weights_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fuzz-weights-file-" + std::to_string(getpid()));
  needle::write_file_atomic(path, std::string_view(reinterpret_cast<const char*>(data), size));
  try {
    const needle::WeightsFile file(path, {.verify_checksums = false});
    volatile unsigned sum = 0;
    for (const needle::WeightsSection& section : file.sections()) {
      for (const std::byte byte : file.bytes(section)) {
        sum = sum + static_cast<unsigned>(byte);
      }
    }
  } catch (const needle::Error&) {
  }
  return 0;
}
