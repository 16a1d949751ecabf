#include "needle/server/job_process.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

constexpr int kNiceness = 5;

// Between fork and exec only calls that POSIX allows there. Does not return.
[[noreturn]] void become(const JobCommand& command, char* const* arguments, pid_t parent,
                         int failure) {
  ::setsid();
  [[maybe_unused]] const int nice = ::nice(kNiceness);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);  // the server blocks what shall stop its children
  ::prctl(PR_SET_PDEATHSIG, SIGINT);
  if (::getppid() != parent) {
    ::_exit(130);  // the server ended before it could be said
  }
  const int in = ::open("/dev/null", O_RDONLY);
  constexpr int kAppend = O_WRONLY | O_CREAT | O_APPEND;
  const int out = ::open(command.out.c_str(), kAppend, 0644);
  const int err = ::open(command.err.c_str(), kAppend, 0644);
  if (in >= 0 && out >= 0 && err >= 0 && ::chdir(command.folder.c_str()) == 0 &&
      ::dup2(in, STDIN_FILENO) >= 0 && ::dup2(out, STDOUT_FILENO) >= 0 &&
      ::dup2(err, STDERR_FILENO) >= 0) {
    ::close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    ::execv(arguments[0], arguments);
  }
  const int reason = errno;
  [[maybe_unused]] const ssize_t written = ::write(failure, &reason, sizeof reason);
  ::_exit(127);
}

}  // namespace

std::optional<ProcessMark> find_process(pid_t id) {
  try {
    const std::string text = read_file(format("/proc/{}/stat", id));
    // The name, in parentheses, may hold anything; state is the third field, start the 22nd.
    std::istringstream fields(text.substr(text.rfind(')') + 1));
    std::string field;
    std::string state;
    fields >> state;
    for (int i = 4; i <= 22; ++i) {
      fields >> field;
    }
    if (state == "Z" || state == "X" || field.empty()) {
      return {};
    }
    return ProcessMark{.id = id, .start = std::strtoull(field.c_str(), nullptr, 10)};
  } catch (const FileError&) {
    return {};
  }
}

bool is_running(const ProcessMark& mark) {
  const auto found = mark.id > 0 ? find_process(mark.id) : std::nullopt;
  return found && found->start == mark.start;
}

JobProcess::JobProcess(const JobCommand& command) {
  std::vector<char*> arguments;
  for (const std::string& argument : command.arguments) {
    arguments.push_back(const_cast<char*>(argument.c_str()));  // execv's old signature
  }
  arguments.push_back(nullptr);
  int failure[2];
  if (::pipe2(failure, O_CLOEXEC) != 0) {
    throw FileError(format("cannot start {}: {}", arguments[0], std::strerror(errno)));
  }
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) {
    become(command, arguments.data(), parent, failure[1]);
  }
  int reason = child < 0 ? errno : 0;
  ::close(failure[1]);
  if (child > 0 && ::read(failure[0], &reason, sizeof reason) > 0) {
    ::waitpid(child, nullptr, 0);
  }
  ::close(failure[0]);
  if (reason != 0) {
    throw FileError(format("cannot start {}: {}", arguments[0], std::strerror(reason)));
  }
  mark_ = find_process(child).value_or(ProcessMark{.id = child});
}

JobProcess::~JobProcess() {
  if (!ended()) {
    signal(SIGKILL);
    ::waitpid(mark_.id, nullptr, 0);
  }
}

void JobProcess::signal(int number) const { ::kill(-mark_.id, number); }  // its whole session

std::optional<int> JobProcess::ended() {
  int status = 0;
  if (!status_ && ::waitpid(mark_.id, &status, WNOHANG) == mark_.id) {
    status_ = status;
  }
  return status_;
}

std::string ending_text(int status) {
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    return format("was ended by signal {} ({}){}", number, ::strsignal(number),
                  number == SIGKILL ? "; the machine may have run out of memory" : "");
  }
  return format("ended with code {}", WEXITSTATUS(status));
}

std::filesystem::path find_program(const std::string& name) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  if (::access((self / name).c_str(), X_OK) == 0) {
    return self / name;
  }
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const auto candidate = std::filesystem::path(folder.empty() ? "." : folder) / name;
    if (::access(candidate.c_str(), X_OK) == 0) {
      return std::filesystem::absolute(candidate);
    }
  }
  return {};
}

}  // namespace needle
