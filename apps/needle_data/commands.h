// The subcommands of needle-data. Each adds itself to the command line; its work is done by a
// library call.
#pragma once

#include <CLI/CLI.hpp>

namespace needle {

void add_check_command(CLI::App& app);
void add_prepare_command(CLI::App& app);
void add_split_command(CLI::App& app);
void add_synth_command(CLI::App& app);
void add_train_tokenizer_command(CLI::App& app);

}  // namespace needle
