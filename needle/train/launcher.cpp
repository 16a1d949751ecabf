#include "needle/train/launcher.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/exit_code.h"
#include "needle/core/log.h"

extern char** environ;

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPatience = 2.0;  // for ranks to notice that another one failed

// What the handlers may touch. Global because signals are.
volatile std::sig_atomic_t last_signal = 0;
void remember(int number) { last_signal = number; }

class SignalScope {
 public:
  SignalScope() {
    last_signal = 0;
    struct sigaction action {};
    action.sa_handler = remember;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &action, &before_[i]);
    }
  }
  ~SignalScope() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &before_[i], nullptr);
    }
  }
  SignalScope(const SignalScope&) = delete;
  SignalScope& operator=(const SignalScope&) = delete;

 private:
  static constexpr std::array kSignals{SIGINT, SIGTERM};
  std::array<struct sigaction, 2> before_{};
};

// A socket on a free port of the loopback, which the first rank inherits: no other program can take
// the port in between.
struct Listener {
  int fd = -1;
  int port = 0;

  Listener() {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    if (fd < 0 || bind(fd, name, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, name, &size) != 0) {
      throw Error(format("no port on 127.0.0.1 for the ranks to meet: {}", std::strerror(errno)));
    }
    port = ntohs(address.sin_port);
  }
  ~Listener() { close(fd); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
};

struct Process {
  std::int64_t rank = 0;
  pid_t pid = -1;
  int pipe = -1;     // its output, but for the first rank
  std::string line;  // begun
  std::optional<int> status;
};

std::vector<std::string> environment_of(const LaunchOptions& options, std::int64_t rank,
                                        std::int64_t restarts, const Listener& listener) {
  std::vector<std::string> variables;
  bool has_threads = false;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    has_threads = has_threads || std::strncmp(*entry, "OMP_NUM_THREADS=", 16) == 0;
    variables.emplace_back(*entry);
  }
  const auto set = [&](const std::string& name, const auto& value) {
    std::erase_if(variables, [&](const std::string& one) { return one.starts_with(name + "="); });
    variables.push_back(format("{}={}", name, value));
  };
  set("RANK", rank);
  set("LOCAL_RANK", rank);
  set("WORLD_SIZE", options.ranks);
  set("LOCAL_WORLD_SIZE", options.ranks);
  set("GROUP_RANK", 0);
  set("MASTER_ADDR", "127.0.0.1");
  set("MASTER_PORT", listener.port);
  set("TORCHELASTIC_RESTART_COUNT", restarts);
  set("TORCHELASTIC_USE_AGENT_STORE", "False");
  set("NEEDLE_LAUNCHER", "needle-train --nproc");
  if (rank == 0) {
    set("NEEDLE_STORE_FD", listener.fd);
  }
  if (!has_threads) {
    const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    set("OMP_NUM_THREADS", std::max<std::int64_t>(cores / options.ranks, 1));
  }
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

// In the child: nothing but system calls.
[[noreturn]] void become_rank(std::int64_t rank, const Listener& listener, int output,
                              const char* program, char** arguments, char** environment) {
  setpgid(0, 0);  // Ctrl-C reaches the launcher alone, which passes it on once
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (rank == 0) {
    fcntl(listener.fd, F_SETFD, 0);
  } else {
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
  }
  execve(program, arguments, environment);
  _exit(127);
}

Process start(const LaunchOptions& options, std::int64_t rank, std::int64_t restarts,
              const Listener& listener) {
  std::vector<std::string> command = options.command;
  std::vector<std::string> variables = environment_of(options, rank, restarts, listener);
  const std::vector<char*> arguments = pointers(command);
  const std::vector<char*> environment = pointers(variables);
  std::array<int, 2> ends{-1, -1};
  if (rank != 0 && pipe2(ends.data(), O_CLOEXEC) != 0) {
    throw Error(format("rank {}: no pipe: {}", rank, std::strerror(errno)));
  }
  const pid_t pid = fork();
  if (pid == 0) {
    become_rank(rank, listener, ends[1], "/proc/self/exe", const_cast<char**>(arguments.data()),
                const_cast<char**>(environment.data()));
  }
  if (pid < 0) {
    throw Error(format("rank {} cannot be started: {}", rank, std::strerror(errno)));
  }
  if (ends[1] >= 0) {
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
  }
  return {.rank = rank, .pid = pid, .pipe = ends[0], .line = {}, .status = {}};
}

// Whole lines of a rank, marked as its own.
void forward_output(Process& process) {
  std::array<char, 4096> buffer{};
  ssize_t got = 0;
  while ((got = read(process.pipe, buffer.data(), buffer.size())) > 0) {
    process.line.append(buffer.data(), static_cast<std::size_t>(got));
  }
  if (got == 0) {  // the rank has ended; poll would find the pipe ready again and again
    close(process.pipe);
    process.pipe = -1;
  }
  for (std::size_t end = 0; (end = process.line.find('\n')) != std::string::npos;) {
    const std::string line = format("[rank {}] {}\n", process.rank, process.line.substr(0, end));
    process.line.erase(0, end + 1);
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
      return;
    }
  }
}

std::string fate(const Process& process) {
  const int status = *process.status;
  if (WIFSIGNALED(status)) {
    return format("rank {} (pid {}) was killed by signal {} ({})", process.rank, process.pid,
                  WTERMSIG(status), strsignal(WTERMSIG(status)));
  }
  return format("rank {} (pid {}) ended with exit code {}", process.rank, process.pid,
                WEXITSTATUS(status));
}

int exit_code(const Process& process) {
  return WIFSIGNALED(*process.status) ? kExitFailed : WEXITSTATUS(*process.status);
}

// One start of all ranks.
class Job {
 public:
  Job(const LaunchOptions& options, std::int64_t restarts) : options_(options) {
    for (std::int64_t rank = 0; rank < options.ranks; ++rank) {
      processes_.push_back(start(options, rank, restarts, listener_));
    }
  }
  ~Job() {
    signal_all(SIGKILL);
    for (Process& process : processes_) {
      if (!process.status) {
        waitpid(process.pid, nullptr, 0);
      }
      if (process.pipe >= 0) {
        close(process.pipe);
      }
    }
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  // Until every rank has ended. Returns the first that failed.
  const Process* wait() {
    while (running() > 0) {
      pass_output();
      collect();
      if (const int signal = last_signal; signal != 0) {
        last_signal = 0;
        log_info("{}: the ranks finish their step, save and end", strsignal(signal));
        signal_all(signal);
        deadline_ = deadline_ ? deadline_ : after(options_.grace_s);
      }
      if (deadline_ && Clock::now() > *deadline_) {
        signal_all(SIGKILL);
      }
    }
    pass_output();
    return failed_;
  }

 private:
  static Clock::time_point after(double seconds) {
    return Clock::now() + std::chrono::milliseconds(static_cast<std::int64_t>(1000.0 * seconds));
  }
  std::ptrdiff_t running() const {
    return std::count_if(processes_.begin(), processes_.end(),
                         [](const Process& one) { return !one.status; });
  }
  void signal_all(int signal) const {
    for (const Process& process : processes_) {
      if (!process.status) {
        kill(process.pid, signal);
      }
    }
  }
  void pass_output() {
    std::vector<pollfd> waits;
    for (const Process& process : processes_) {
      waits.push_back({.fd = process.pipe, .events = POLLIN, .revents = 0});
    }
    poll(waits.data(), waits.size(), 50);
    for (Process& process : processes_) {
      if (process.pipe >= 0) {
        forward_output(process);
      }
    }
  }
  void collect() {
    for (Process& process : processes_) {
      int status = 0;
      if (process.status || waitpid(process.pid, &status, WNOHANG) != process.pid) {
        continue;
      }
      process.status = status;
      if (status != 0 && failed_ == nullptr) {
        failed_ = &process;
        if (exit_code(process) != kExitInterrupted && running() > 0) {
          log_error("{}; ending the others", fate(process));
          deadline_ = after(kPatience);
        }
      }
    }
  }

  const LaunchOptions& options_;
  Listener listener_;
  std::vector<Process> processes_;
  const Process* failed_ = nullptr;
  std::optional<Clock::time_point> deadline_;
};

}  // namespace

int launch_ranks(const LaunchOptions& options) {
  NEEDLE_CHECK(options.ranks >= 1 && !options.command.empty(), "{} ranks of a command of {} words",
               options.ranks, options.command.size());
  const SignalScope signals;
  for (std::int64_t restarts = 0;; ++restarts) {
    Job job(options, restarts);
    const Process* const failed = job.wait();
    if (failed == nullptr) {
      return kExitDone;
    }
    const int code = exit_code(*failed);
    if (code == kExitUsage || code == kExitInterrupted || restarts >= options.max_restarts) {
      return code;
    }
    log_warning("{}: starting all ranks again from the newest checkpoint (restart {} of {})",
                fate(*failed), restarts + 1, options.max_restarts);
  }
}

}  // namespace needle
