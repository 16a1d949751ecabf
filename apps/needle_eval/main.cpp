// needle-eval: how good a model is, and whether another is better.
#include "apps/cli.h"
#include "apps/needle_eval/commands.h"

int main(int argc, char** argv) {
  CLI::App app{"Measure models: function calls, tool retrieval, perplexity.", "needle-eval"};
  app.require_subcommand(1);
  app.footer(
      "A model is a .needle file, a checkpoint or run folder, or a published needle.pkl. Data is\n"
      "JSONL (may be gzip), a row {\"query\": text, \"tools\": [...], \"answers\": [...]}.\n"
      "  needle-eval calls --model model.needle --data test.jsonl\n"
      "  needle-eval calls --model runs/base --model runs/finetuned --data test.jsonl\n"
      "  needle-eval compare runs/finetuned model.needle --data test.jsonl\n"
      "  needle-eval calibrate --model model.needle --data valid.jsonl -o model.needle\n"
      "  needle-eval perplexity --model runs/finetuned --data valid.jsonl\n"
      "Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.");
  needle::add_calibrate_command(app);
  needle::add_calls_command(app);
  needle::add_compare_command(app);
  needle::add_perplexity_command(app);
  needle::add_retrieval_command(app);
  return needle::run_command(app, argc, argv);
}
