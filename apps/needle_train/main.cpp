// needle-train: from rows to a trained model.
#include "needle/train/host_memory.h"

#include "apps/cli.h"
#include "apps/needle_train/commands.h"

int main(int argc, char** argv) {
  needle::keep_freed_memory();
  CLI::App app{"Train and finetune Needle models.", "needle-train"};
  app.require_subcommand(1);
  app.footer(
      "A model that answers with calls of your own tools, from rows {\"query\", \"tools\", "
      "\"answers\"}:\n"
      "  needle-train finetune rows.jsonl                       from the released weights\n"
      "  needle-train finetune rows.jsonl --checkpoint runs/pretrain\n"
      "  needle-train finetune rows.jsonl --checkpoint none     from scratch\n"
      "A base model, from plain text rows {\"query\", \"query_seed_text\", \"synthetic_answer\"}:\n"
      "  needle-train pretrain pretrain --data text.jsonl.gz --set train.time_budget_s=600\n"
      "Ctrl-C saves and stops; the same command with --resume goes on, bit for bit.\n"
      "In several processes, on this host or (torchrun, srun, mpirun) on many; "
      "docs/distributed.md:\n"
      "  needle-train pretrain my.json --nproc 4 --max-restarts 3\n"
      "Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 failed, 2 wrong usage, "
      "130 stopped.");
  const auto launch = std::make_shared<needle::LaunchFlags>();
  launch->command.assign(argv, argv + argc);
  needle::add_launch_options(app, *launch);
  needle::add_pretrain_command(app, launch);
  needle::add_finetune_command(app, launch);
  needle::add_config_command(app);
  needle::add_bench_command(app, launch);
  return needle::run_command(app, argc, argv);
}
