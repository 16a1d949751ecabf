// A progress bar on stderr: silent when stderr is not a terminal, and for work shorter than two
// seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace needle {

// Not thread-safe.
class Progress {
 public:
  // `total` 0: unknown, shows the count alone. `unit`: "rows", "steps", "bytes".
  Progress(std::string_view title, std::uint64_t total, std::string_view unit = "");
  ~Progress();  // ends the line if one was drawn
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(std::uint64_t count = 1);
  void set(std::uint64_t done);
  void note(std::string_view text);  // shown behind the bar, e.g. "loss 1.234"

 private:
  void draw(bool force);
  std::string title_;
  std::string unit_;
  std::string note_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

namespace internal {

// The text of one bar, for Progress and its test.
struct ProgressLine {
  std::string_view title;
  std::string_view unit;
  std::string_view note;
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  double seconds = 0.0;  // since the start
};
std::string progress_text(const ProgressLine& line);

// Wipes a bar that is on the screen, so that a log line does not run into it. Thread-safe.
void clear_progress_line() noexcept;

}  // namespace internal

}  // namespace needle
