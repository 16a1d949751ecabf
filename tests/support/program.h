// Runs the programs of this build and catches what they say.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace needle::test {

struct ProgramResult {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// `name`: "needle-run", beside this test's own binary.
std::filesystem::path built_program(std::string_view name);

// Waits for the program's end. `arguments` are passed as they are; `input` is its stdin.
ProgramResult run_program(const std::filesystem::path& program,
                          const std::vector<std::string>& arguments, std::string_view input = "");

}  // namespace needle::test
