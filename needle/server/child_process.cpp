#include "needle/server/child_process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"

namespace needle {
namespace {

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw FileError(format("no pipe: {}", std::strerror(errno)));
    }
    read = ends[0];
    write = ends[1];
  }
  int read = -1;
  int write = -1;
};

std::vector<std::string> merged_environment(
    const std::vector<std::pair<std::string, std::string>>& more) {
  std::vector<std::string> lines;
  for (char** line = environ; *line != nullptr; ++line) {
    const std::string_view text = *line;
    const std::string_view name = text.substr(0, text.find('='));
    if (std::ranges::find(more, name, &std::pair<std::string, std::string>::first) == more.end()) {
      lines.emplace_back(text);
    }
  }
  for (const auto& [name, value] : more) {
    lines.push_back(name + "=" + value);
  }
  return lines;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (std::string& text : texts) {
    list.push_back(text.data());
  }
  list.push_back(nullptr);
  return list;
}

// False at the deadline.
bool wait_for(int descriptor, short events, ChildProcess::Clock::time_point deadline) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - ChildProcess::Clock::now()).count();
    pollfd poll{.fd = descriptor, .events = events, .revents = 0};
    const int ready = ::poll(&poll, 1, static_cast<int>(std::clamp<long>(left, 0, 60'000)));
    if (ready > 0) {
      return true;
    }
    if (left <= 0 || (ready < 0 && errno != EINTR)) {
      return false;
    }
  }
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command,
                           const std::vector<std::pair<std::string, std::string>>& environment) {
  NEEDLE_CHECK(!command.empty(), "an empty command");
  const Pipe in;
  const Pipe out;
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in.read, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out.write, STDOUT_FILENO);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);  // whatever this program blocks or ignores, the other one does not
  sigset_t all;
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &all);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<std::string> words = command;
  std::vector<std::string> lines = merged_environment(environment);
  const int failure = ::posix_spawnp(&process_, words[0].c_str(), &actions, &attributes,
                                     pointers(words).data(), pointers(lines).data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in.read);
  ::close(out.write);
  input_ = in.write;
  output_ = out.read;
  if (failure != 0) {
    process_ = -1;
    close_pipes();
    throw FileError(format("{}: cannot be started: {}", words[0], std::strerror(failure)));
  }
  ::fcntl(input_, F_SETFL, O_NONBLOCK);
}

ChildProcess::~ChildProcess() {
  close_pipes();
  if (process_ < 0 || ends_within(std::chrono::seconds(2))) {
    return;
  }
  ::kill(process_, SIGTERM);
  if (!ends_within(std::chrono::seconds(1))) {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
  }
}

void ChildProcess::close_pipes() {
  for (int* end : {&input_, &output_}) {
    if (*end >= 0) {
      ::close(std::exchange(*end, -1));
    }
  }
}

bool ChildProcess::ends_within(std::chrono::milliseconds time) {
  const auto deadline = Clock::now() + time;
  while (::waitpid(process_, nullptr, WNOHANG) == 0) {
    if (Clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  process_ = -1;
  return true;
}

void ChildProcess::write_line(std::string_view line, Clock::time_point deadline) {
  const std::string bytes = std::string(line) + "\n";
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::write(input_, bytes.data() + done, bytes.size() - done);
    if (count > 0) {
      done += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {
      if (!wait_for(input_, POLLOUT, deadline)) {
        throw Error("it does not read what it is sent");
      }
    } else if (errno != EINTR) {
      throw Error("it has ended");
    }
  }
}

std::optional<std::string> ChildProcess::read_line(Clock::time_point deadline) {
  std::size_t looked = 0;
  for (;;) {
    if (const std::size_t end = buffer_.find('\n', looked); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (line.ends_with('\r')) {
        line.pop_back();
      }
      return line;
    }
    looked = buffer_.size();
    if (looked > kMaxLineBytes) {
      throw Error(format("it sent a line over {} bytes", kMaxLineBytes));
    }
    if (!wait_for(output_, POLLIN, deadline)) {
      return {};
    }
    std::array<char, 65536> bytes;
    const ssize_t count = ::read(output_, bytes.data(), bytes.size());
    if (count == 0 || (count < 0 && errno != EINTR)) {
      throw Error("it has ended");
    }
    buffer_.append(bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
  }
}

}  // namespace needle
