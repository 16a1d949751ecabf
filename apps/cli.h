// What every command does with its arguments: parse, run the chosen subcommand, turn errors into
// exit codes.
#pragma once

#include <CLI/CLI.hpp>

#include "needle/core/exit_code.h"

namespace needle {

// 0 done (and --help), 1 failed, 2 wrong usage or a wrong setting, 130 interrupted. Subcommands run
// as CLI11 callbacks.
inline int run_command(CLI::App& app, int argc, char** argv) {
  int usage = 0;
  const int failure = run_main([&] {
    try {
      app.parse(argc, argv);
    } catch (const CLI::RuntimeError& error) {  // a code of a program that this one started
      usage = error.get_exit_code();
    } catch (const CLI::ParseError& error) {
      usage = app.exit(error) == 0 ? 0 : 2;
    }
  });
  return failure != 0 ? failure : usage;
}

}  // namespace needle
