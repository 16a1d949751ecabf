// What every command does with its arguments: parse, run the chosen subcommand, turn errors into
// exit codes.
#pragma once

#include <iostream>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "needle/core/exit_code.h"
#include "needle/core/fields.h"
#include "needle/core/version.h"

namespace needle {

// The subcommand that was chosen last: its options are those that the user meant.
inline const CLI::App& chosen(const CLI::App& app) {
  const auto subcommands = app.get_subcommands();
  return subcommands.empty() ? app : chosen(*subcommands.back());
}

// Its name with those of the commands above it, as one types it.
inline std::string full_name(const CLI::App& app) {
  const CLI::App* const parent = app.get_parent();
  return parent == nullptr ? app.get_name() : full_name(*parent) + ' ' + app.get_name();
}

// "; did you mean NAME?", or nothing if none is near.
inline std::string suggestion(const std::string& name, const std::vector<std::string>& known) {
  const auto nearest = nearest_name(name, known);
  return nearest ? "; did you mean " + *nearest + '?' : "";
}

// What is wrong with a command line: what came, what was expected, what to do.
inline std::string usage_problem(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = chosen(app);
  std::vector<std::string> subcommands, options;
  std::string list;
  for (const CLI::App* one : command.get_subcommands([](const CLI::App*) { return true; })) {
    subcommands.push_back(one->get_name());
    list += (list.empty() ? "" : ", ") + one->get_name();
  }
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      options.push_back("--" + name);
    }
  }
  std::string unknown;  // the first argument that nothing took
  for (const std::string& argument : command.remaining()) {
    unknown = unknown.empty() && argument != "--" ? argument : unknown;
  }
  const std::string name = full_name(command), help = "\n" + name + " --help explains it.";
  const bool wants_subcommand = command.get_require_subcommand_min() > 0;
  if (!unknown.empty() && unknown.front() == '-') {
    const std::string flag = unknown.substr(0, unknown.find('='));
    return name + ": there is no option " + flag + suggestion(flag, options) + help;
  }
  if (!unknown.empty() && !subcommands.empty()) {
    return name + ": there is no subcommand \"" + unknown + "\"" +
           suggestion(unknown, subcommands) + "\nSubcommands: " + list + '.' + help;
  }
  if (!unknown.empty()) {
    return name + ": one argument too many: \"" + unknown + '"' + help;
  }
  if (wants_subcommand && command.get_subcommands().empty()) {
    return name + ": a subcommand is missing: " + list + '.' + help;
  }
  if (error.get_name() == "RequiredError") {
    for (const CLI::Option* option : command.get_options()) {
      if (option->get_required() && option->count() == 0) {
        return name + ": " + option->get_name() + " is missing: " + option->get_description() +
               help;
      }
    }
  }
  return name + ": " + error.what() + help;
}

// 0 done (and --help), 1 failed, 2 wrong usage or a wrong setting, 130 interrupted. Subcommands run
// as CLI11 callbacks.
inline int run_command(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version", app.get_name() + ' ' + std::string(version()),
                       "Print the version and exit");
  int usage = 0;
  const int failure = run_main([&] {
    try {
      app.parse(argc, argv);
    } catch (const CLI::RuntimeError& error) {  // a code of a program that this one started
      usage = error.get_exit_code();
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) {  // --help, --version
        usage = app.exit(error);
        return;
      }
      std::cerr << "error: " << usage_problem(app, error) << '\n';
      usage = 2;
    }
  });
  return failure != 0 ? failure : usage;
}

}  // namespace needle
