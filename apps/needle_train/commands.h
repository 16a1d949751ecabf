// The subcommands of needle-train.
#pragma once

#include <CLI/CLI.hpp>

namespace needle {

void add_pretrain_command(CLI::App& app);
void add_finetune_command(CLI::App& app);
void add_config_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace needle
