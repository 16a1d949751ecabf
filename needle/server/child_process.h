// Another program that is spoken to in lines, over its standard input and output.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/types.h>

namespace needle {

// Used by one thread at a time. Its standard error is ours. Ours must ignore SIGPIPE.
class ChildProcess {
 public:
  using Clock = std::chrono::steady_clock;

  // `command`: the program, looked for in PATH, and its arguments; no shell is asked. `environment`
  // comes on top of ours. Throws FileError if it cannot be started.
  ChildProcess(const std::vector<std::string>& command,
               const std::vector<std::pair<std::string, std::string>>& environment);
  // Closes its input, waits two seconds for its end, then asks (SIGTERM), then ends it (SIGKILL).
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Both throw Error if the program has ended, does not read or sends a line over `kMaxLineBytes`.
  void write_line(std::string_view line, Clock::time_point deadline);
  // Without its end. Nothing at the deadline.
  std::optional<std::string> read_line(Clock::time_point deadline);

  static constexpr std::size_t kMaxLineBytes = 16 << 20;

 private:
  bool ends_within(std::chrono::milliseconds time);
  void close_pipes();

  pid_t process_ = -1;
  int input_ = -1;   // its standard input: we write
  int output_ = -1;  // its standard output: we read
  std::string buffer_;
};

}  // namespace needle
