// Ranks as processes, forked from a test.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace needle::test {

// Runs `body` as every rank in a process of its own. Returns their statuses.
inline std::vector<int> as_processes(std::int64_t world,
                                     const std::function<void(std::int64_t rank)>& body) {
  std::vector<pid_t> children;
  for (std::int64_t rank = 0; rank < world; ++rank) {
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 3;
      try {
        body(rank);
        code = testing::Test::HasFailure() ? 1 : 0;
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", static_cast<int>(rank), error.what());
      }
      std::fflush(nullptr);
      _exit(code);
    }
    children.push_back(pid);
  }
  std::vector<int> statuses;
  for (const pid_t pid : children) {
    int status = 0;
    waitpid(pid, &status, 0);
    statuses.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  return statuses;
}

inline void expect_good(const std::vector<int>& statuses) {
  EXPECT_EQ(statuses, std::vector<int>(statuses.size(), 0));
}

}  // namespace needle::test
