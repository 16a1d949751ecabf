// Where tests find the reference's numbers, larger data, and room for temporary files.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace needle::test {

// NEEDLE_GOLDEN_DIR, by default tests/golden.
std::filesystem::path golden_dir();
std::filesystem::path golden(std::string_view relative_path);

// NEEDLE_SHARED_DIR, by default ../shared beside the checkout. May not exist: callers skip with a
// message.
std::filesystem::path shared_dir();

// The checkout: configs, docs and data that tests look at.
std::filesystem::path source_dir();

// A fresh empty folder, removed at the end of the scope.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace needle::test
