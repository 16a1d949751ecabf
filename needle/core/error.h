// Exceptions at the boundary (files, configs, data, command lines) and checks against misuse by a
// caller.
//
// A message says where (file:line or field path), what was expected, what came and what to do next.
// Only a `main` prints and exits: needle/core/exit_code.h maps these types to exit codes.
#pragma once

#include <stdexcept>
#include <string>

#include "needle/core/format.h"

namespace needle {

// Base of every exception that this project throws on purpose. Exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A setting, a config file or a command line is wrong: the user has to change what was asked. Exit
// code 2.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// A row or a value of the user's data is wrong. Exit code 1.
class DataError : public Error {
 public:
  using Error::Error;
};

// A file is not what its name or header claims: truncated, corrupt, another version. Exit code 1.
class FormatError : public Error {
 public:
  using Error::Error;
};

// The operating system refused a file operation (missing, unreadable, disk full). Exit code 1.
class FileError : public Error {
 public:
  using Error::Error;
};

// The user or a scheduler asked to stop (SIGINT, SIGTERM) and everything was saved. Exit code 130.
class Interrupted : public Error {
 public:
  using Error::Error;
};

namespace internal {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               std::string message);
}  // namespace internal

}  // namespace needle

// Always on: misuse by a caller throws needle::Error with the place and the condition.
// Usage: NEEDLE_CHECK(a == b, "a is {}, b is {}", a, b);
#define NEEDLE_CHECK(condition, ...)                                   \
  do {                                                                 \
    if (!(condition)) [[unlikely]] {                                   \
      ::needle::internal::check_failed(__FILE__, __LINE__, #condition, \
                                       ::needle::format(__VA_ARGS__)); \
    }                                                                  \
  } while (false)

// In hot loops: as NEEDLE_CHECK in debug builds, nothing in release builds.
#ifdef NDEBUG
#define NEEDLE_DCHECK(condition, ...) \
  do {                                \
  } while (false)
#else
#define NEEDLE_DCHECK(condition, ...) NEEDLE_CHECK(condition, __VA_ARGS__)
#endif
