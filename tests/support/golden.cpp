#include "tests/support/golden.h"

#include <cstdlib>
#include <stdexcept>

namespace needle::test {
namespace {

std::filesystem::path from_environment(const char* variable, const char* fallback) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' ? value : fallback;
}

}  // namespace

std::filesystem::path golden_dir() {
  // Absolute, and from the first call on: a test may change the working directory.
  static const std::filesystem::path folder = std::filesystem::absolute(
      from_environment("NEEDLE_GOLDEN_DIR", NEEDLE_SOURCE_DIR "/tests/golden"));
  return folder;
}

std::filesystem::path golden(std::string_view relative_path) {
  return golden_dir() / relative_path;
}

std::filesystem::path shared_dir() {
  return from_environment("NEEDLE_SHARED_DIR", NEEDLE_SOURCE_DIR "/../shared");
}

std::filesystem::path source_dir() {
  return from_environment("NEEDLE_SOURCE_DIR", NEEDLE_SOURCE_DIR);
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "needle-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) {
    throw std::runtime_error("cannot make a temporary folder like " + pattern);
  }
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace needle::test
