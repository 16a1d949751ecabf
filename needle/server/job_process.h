// A program that works for minutes while the server goes on: its output goes into files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

namespace needle {

struct JobCommand {
  std::vector<std::string> arguments;  // the program's path first
  std::filesystem::path folder;        // its working folder
  std::filesystem::path out;           // stdout is appended to it
  std::filesystem::path err;           // stderr, too
};

// A process as others can find it again: the kernel uses numbers twice, but not with one start.
struct ProcessMark {
  pid_t id = 0;
  std::uint64_t start = 0;  // in ticks since boot
};
// Nothing once it has ended.
std::optional<ProcessMark> find_process(pid_t id);
bool is_running(const ProcessMark& mark);

// Not thread-safe. Begun in a session of its own, so that Ctrl-C in the server's terminal does not
// reach it, and at low priority: answers go first. If the thread that made it ends, it gets SIGINT:
// no training goes on that nobody watches.
class JobProcess {
 public:
  // Throws FileError if the program cannot be started.
  explicit JobProcess(const JobCommand& command);
  // Kills it if it still runs.
  ~JobProcess();
  JobProcess(const JobProcess&) = delete;
  JobProcess& operator=(const JobProcess&) = delete;

  const ProcessMark& mark() const { return mark_; }
  void signal(int number) const;
  // How it ended (as waitpid says), nothing while it runs.
  std::optional<int> ended();

 private:
  ProcessMark mark_;
  std::optional<int> status_;
};

// "ended with code 2", "was ended by signal 9 (Killed)".
std::string ending_text(int status);

// `name` beside this program, else in PATH; empty if there is none.
std::filesystem::path find_program(const std::string& name);

}  // namespace needle
