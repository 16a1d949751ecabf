// needle-data: everything that is done to rows before a model sees them.
#include "apps/cli.h"
#include "apps/needle_data/commands.h"

int main(int argc, char** argv) {
  CLI::App app{"Make, check, split and encode training data.", "needle-data"};
  app.require_subcommand(1);
  app.footer(
      "A row is one JSON object a line: {\"query\": text, \"tools\": [...], \"answers\": [...]}.\n"
      "Files may be gzip. From your own tools to data that trains:\n"
      "  needle-data synth --tools tools.json -n 2000 -o rows.jsonl\n"
      "  needle-data check rows.jsonl\n"
      "  needle-data split rows.jsonl -o splits\n"
      "Exit codes: 0 done, 1 failed or problems found, 2 wrong usage.");
  needle::add_check_command(app);
  needle::add_prepare_command(app);
  needle::add_split_command(app);
  needle::add_synth_command(app);
  needle::add_train_tokenizer_command(app);
  return needle::run_command(app, argc, argv);
}
