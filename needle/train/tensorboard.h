// TensorBoard event files, written without TensorFlow: TFRecord framing around hand-encoded Event
// messages.
//
// Formats: tensorflow/core/lib/io/record_writer.h (length, masked CRC-32C, bytes, masked CRC-32C)
// and tensorflow/core/util/event.proto (wall_time = 1, step = 2, file_version = 3, summary = 5,
// session_log = 7).
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace needle {

// One named number, e.g. {"train/loss", 1.25}.
using Scalar = std::pair<std::string, double>;

// Not thread-safe. Throws FileError when the file cannot be written.
class TensorBoardWriter {
 public:
  // Opens a new `events.out.tfevents.*` file in `folder` (made if absent). With `resume_step` above
  // 0, TensorBoard is told to forget what earlier files of this run show after that step.
  explicit TensorBoardWriter(const std::filesystem::path& folder, std::int64_t resume_step = 0);

  void write(std::int64_t step, std::span<const Scalar> scalars);
  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(std::string_view bytes);
  std::filesystem::path path_;
  std::ofstream file_;
};

namespace internal {
std::uint32_t masked_crc32c(std::string_view bytes);
}  // namespace internal

}  // namespace needle
