// Where the time of training steps goes: every operation of LibTorch and every section that the
// code names with RECORD_USER_SCOPE, by LibTorch's own hooks (ATen/record_function.h). Costs
// nothing while no Profile lives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/core/json.h"

namespace needle {

struct ProfileRow {
  std::string name;
  std::int64_t calls = 0;
  double total_ms = 0.0;
  double self_ms = 0.0;  // without what ran inside it on the same thread
};

// Records from construction to stop() or destruction, on all threads. One at a time.
class Profile {
 public:
  Profile();
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  void stop();
  // After stop(). By self time, largest first.
  std::vector<ProfileRow> rows() const;
  std::string table(std::size_t count) const;  // the first `count` rows, as text
  // For chrome://tracing and ui.perfetto.dev. Throws FileError.
  void write_chrome_trace(const std::filesystem::path& path) const;

 private:
  struct Recorder;
  std::shared_ptr<Recorder> recorder_;  // the hooks hold it too
  std::uint64_t handle_ = 0;
};

// GFLOP/s that products of 1024 x 1024 matrices reach here: the best of several, so that what else
// runs on the machine counts little. What utilisation is measured against. Takes about 0.1 s on a
// CPU.
double product_gflops(torch::ScalarType dtype, const torch::Device& device);

}  // namespace needle
