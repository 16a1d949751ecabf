#include "tests/support/program.h"

#include <cstdlib>

#include <sys/wait.h>

#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle::test {
namespace {

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) {
    result += c == '\'' ? "'\\''" : std::string(1, c);
  }
  return result + "'";
}

}  // namespace

std::filesystem::path built_program(std::string_view name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

ProgramResult run_program(const std::filesystem::path& program,
                          const std::vector<std::string>& arguments, std::string_view input) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "in", input);
  std::string command = quoted(program.string());
  for (const std::string& argument : arguments) {
    command += " " + quoted(argument);
  }
  command += " <" + quoted((folder / "in").string()) + " >" + quoted((folder / "out").string()) +
             " 2>" + quoted((folder / "err").string());
  const int status = std::system(command.c_str());
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .out = read_file(folder / "out"),
          .err = read_file(folder / "err")};
}

}  // namespace needle::test
