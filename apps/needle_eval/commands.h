// The subcommands of needle-eval. Each adds itself to the command line; its work is done by library
// calls.
#pragma once

#include <CLI/CLI.hpp>

namespace needle {

void add_calls_command(CLI::App& app);
void add_retrieval_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_perplexity_command(CLI::App& app);  // nothing in a program without LibTorch

}  // namespace needle
