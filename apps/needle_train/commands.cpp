#include "apps/needle_train/commands.h"

#include <iostream>
#include <memory>
#include <string>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/train/bench.h"
#include "needle/train/device_plugin.h"
#include "needle/train/finetune.h"
#include "needle/train/launcher.h"
#include "needle/train/pretrain.h"
#include "needle/train/rank_environment.h"
#include "needle/train/run_config.h"
#include "needle/train/stop_signal.h"

#include "apps/needle_train/exported_engine.h"

namespace needle {
namespace {

void print_line(const Json& record) { std::cout << record.dump() << std::endl; }

void add_device_option(CLI::App& command, std::string& device) {
  command.add_option("--device", device,
                     "Where to compute: auto, cpu, cuda, cuda:1, mps, xpu or a plug-in's name "
                     "(train.device)");
}

// Fields of the config that have an option of their own.
void set_device(std::vector<std::string>& overrides, const std::string& device) {
  if (!device.empty()) {
    overrides.push_back("train.device=" + device);
  }
}

// What both flows take. The options' own names, so that help reads the same for both.
template <typename Options>
void add_run_options(CLI::App& command, Options& options, std::string& device, bool& json) {
  command
      .add_option("--set", options.overrides,
                  "Set a field of the config: optimizer.adam.peak_lr=3e-4")
      ->allow_extra_args(false);
  add_device_option(command, device);
  command.add_option("-o,--output", options.output, "Run folder (default: the config's)");
  command.add_flag("--resume", options.resume, "Go on with the run in the output folder");
  command.add_flag("--dry-run", options.dry_run,
                   "Say what would be trained on and for how long, and stop");
  command.add_flag("--json", json, "Print records and results as JSON lines");
}

// Starts the ranks if they were asked for and this process is not one of them; else loads what
// brings this process its device.
void launch_if_asked(const LaunchFlags& launch) {
  if (launch.ranks > 1 && rank_environment().world == 1) {
    throw CLI::RuntimeError(launch_ranks(
        {.ranks = launch.ranks, .max_restarts = launch.max_restarts, .command = launch.command}));
  }
  load_device_plugins(launch.device_plugins);
}

template <typename Options>
void watch(Options& options, const StopSignal& stop, bool json) {
  options.environment = rank_environment();
  options.exported_engine = exported_engine;
  options.should_stop = [&stop] { return stop.requested(); };
  if (json) {
    options.on_record = print_line;
  }
}

bool ask_on_terminal(const std::string& question) {
  if (isatty(STDIN_FILENO) != 1 || isatty(STDERR_FILENO) != 1) {
    return false;
  }
  std::cerr << question << " [y/N] ";
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

void print_summary(const TrainSummary& summary, const RunConfig& config) {
  std::cout << format(
                   "steps       {} ({} skipped)\n"
                   "loss        {:.4f}\n"
                   "speed       {:.0f} tokens/s, {:.0f} s\n"
                   "checkpoint  {}\n"
                   "loss curve  {}",
                   summary.steps, summary.skipped, summary.last_loss, summary.tokens_per_second,
                   summary.seconds, summary.best_checkpoint, config.output / "loss.svg")
            << std::endl;
}

void run_pretrain(PretrainOptions options, bool json) {
  const StopSignal stop;
  watch(options, stop, json);
  const PretrainResult result = pretrain(options);
  if (!result.is_first) {
    return;
  }
  if (options.dry_run) {
    json ? print_line(result.plan.to_json()) : void(std::cout << result.plan.text() << std::endl);
  } else if (json) {
    Json summary = result.summary.to_json();
    summary["kind"] = "summary";
    print_line(summary);
  } else {
    print_summary(result.summary, result.config);
  }
}

void run_finetune(FinetuneOptions options, bool yes, bool json) {
  const StopSignal stop;
  watch(options, stop, json);
  options.confirm = [yes](const std::string& question) { return yes || ask_on_terminal(question); };
  const FinetuneResult result = finetune(options);
  if (!result.is_first) {
    return;
  }
  if (options.dry_run) {
    json ? print_line(result.plan.to_json()) : void(std::cout << result.plan.text() << std::endl);
  } else if (json) {
    Json summary = result.summary.to_json();
    summary["kind"] = "summary";
    summary["bundle"] = result.bundle.string();
    print_line(summary);
  } else {
    print_summary(result.summary, result.config);
    std::cout << format("bundle      {}\n\nOn {} test examples:\n{}", result.bundle,
                        result.test_examples, result.table)
              << std::endl;
  }
}

struct ConfigCommandOptions {
  bool docs = false;
  std::string print;
  std::vector<std::string> overrides;
};

void run_config_command(const ConfigCommandOptions& options) {
  if (options.docs) {
    std::cout << config_documentation();
  } else if (!options.print.empty()) {
    std::cout << to_json(load_run_config(options.print, options.overrides)).dump(2) << std::endl;
  } else {
    for (const std::string& name : embedded_config_names()) {
      std::cout << name << "\n";
    }
  }
}

void run_bench(const TrainBenchOptions& options, bool json) {
  const TrainBenchResult result = train_bench(options);
  if (options.environment.rank > 0) {
    return;
  }
  if (json) {
    print_line(result.to_json());
    return;
  }
  std::cout
      << format(
             "{} in {}\n"
             "speed       {:.0f} tokens/s, {:.1f} ms a step (fastest {:.1f})\n"
             "products    {:.0f} GFLOP/s: {:.0f} % of the {:.0f} that large products reach here\n"
             "memory      {:.0f} MB at most\n"
             "loss        {:.6f} at the first step\n{}",
             result.config, result.compute_dtype, result.tokens_per_second, result.step_ms,
             result.step_ms_min, result.gflops, 100.0 * result.gflops / result.gemm_gflops,
             result.gemm_gflops, result.peak_rss_mb, result.loss, result.profile)
      << std::flush;
}

}  // namespace

void add_launch_options(CLI::App& app, LaunchFlags& launch) {
  app.add_option("--nproc", launch.ranks,
                 "Train in so many processes on this host, which share every batch")
      ->check(CLI::Range(1, 4096));
  app.add_option("--max-restarts", launch.max_restarts,
                 "With --nproc: so often start all again from the newest checkpoint when one fails")
      ->check(CLI::Range(0, 1000000));
  app.add_option("--device-plugin", launch.device_plugins,
                 "Shared library that brings a device, may be given several times; also "
                 "NEEDLE_DEVICE_PLUGIN=PATH:PATH (docs/devices.md)")
      ->allow_extra_args(false);
}

void add_pretrain_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch) {
  auto options = std::make_shared<PretrainOptions>();
  auto device = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  auto* command = app.add_subcommand("pretrain", "Train a base model from a run config");
  command
      ->add_option("config", options->config,
                   "Run config: a JSON file or a built-in name (needle-train config)")
      ->required();
  command->add_option("--data", options->data,
                      "JSONL files to train on, plain or gzip (default: the config's)");
  add_run_options(*command, *options, *device, *json);
  command->footer(
      "Trains a tokenizer on the data (or on tokenizer.texts), encodes and packs the rows, trains, "
      "and leaves\n"
      "checkpoints, metrics.jsonl, TensorBoard events and loss.svg in the run folder. Examples:\n"
      "  needle-train pretrain tiny --data text.jsonl -o runs/tiny\n"
      "  needle-train pretrain pretrain --data text.jsonl.gz --set train.time_budget_s=600 \\\n"
      "      --set 'tokenizer.texts=[\"text.jsonl.gz\",\"calls.jsonl\"]'\n"
      "  needle-train pretrain my.json --resume");
  add_launch_options(*command, *launch);
  command->callback([options, device, json, launch] {
    launch_if_asked(*launch);
    set_device(options->overrides, *device);
    run_pretrain(*options, *json);
  });
}

void add_finetune_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch) {
  auto options = std::make_shared<FinetuneOptions>();
  auto device = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  auto yes = std::make_shared<bool>(false);
  auto* command =
      app.add_subcommand("finetune", "Teach a model your own tools from function-call rows");
  command
      ->add_option("data", options->data,
                   "JSONL file of rows {query, tools, answers}, plain or gzip")
      ->required();
  command->add_option(
      "--checkpoint", options->checkpoint,
      "Where to start: a run, a checkpoint, a needle.pkl, or none for from scratch (default: the "
      "released weights, downloaded if you agree)");
  command
      ->add_option("--model-config", options->model_config,
                   "From scratch: the shape, a name or a JSON file")
      ->capture_default_str();
  command->add_option(
      "--tokenizer", options->tokenizer,
      "SentencePiece model: for a needle.pkl without one beside it, or instead of training one");
  command->add_option(
      "--config", options->config,
      "Run config: a JSON file or a built-in name (default: what suits the checkpoint)");
  command->add_flag("--yes", *yes, "Download without asking");
  add_run_options(*command, *options, *device, *json);
  command->footer(
      "Splits the rows per tool into training, validation and test, evaluates the base, trains, "
      "keeps the checkpoint\n"
      "that is best on the validation rows, and shows both side by side on the test rows. The "
      "bundle in the run folder\n"
      "holds checkpoint, tools, splits, report and README. Examples:\n"
      "  needle-train finetune rows.jsonl --checkpoint runs/pretrain\n"
      "  needle-train finetune rows.jsonl --checkpoint none --model-config small --set "
      "train.epochs=12\n"
      "  needle-train finetune rows.jsonl --checkpoint needle.pkl --tokenizer needle.model "
      "--dry-run");
  add_launch_options(*command, *launch);
  command->callback([options, device, json, yes, launch] {
    launch_if_asked(*launch);
    set_device(options->overrides, *device);
    run_finetune(*options, *yes, *json);
  });
}

void add_config_command(CLI::App& app) {
  auto options = std::make_shared<ConfigCommandOptions>();
  auto* command = app.add_subcommand(
      "config", "List the built-in configs, show one in effect, or explain all fields");
  command->add_flag("--docs", options->docs,
                    "Every field with type, default and meaning (docs/config.md)");
  command->add_option("--print", options->print,
                      "The effective config of a file or a built-in name, as JSON");
  command->add_option("--set", options->overrides, "Set a field of the printed config")
      ->allow_extra_args(false);
  command->footer(
      "  needle-train config\n"
      "  needle-train config --print finetune --set train.epochs=3 > my.json");
  command->callback([options] { run_config_command(*options); });
}

void add_bench_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch) {
  auto options = std::make_shared<TrainBenchOptions>();
  auto device = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  auto* command =
      app.add_subcommand("bench", "Time training steps on fixed shapes and random tokens");
  command
      ->add_option("--config", options->config,
                   "pre8: released shape, 8 x (256 + 128) tokens; pack4: 4 packed rows of 1024 + "
                   "512, 6 segments each; tiny: 1.9 M parameters, 16 x (128 + 48)")
      ->capture_default_str();
  command->add_option("--steps", options->steps, "Timed steps, after one that is not")
      ->capture_default_str();
  command->add_option("--rows", options->rows, "Rows of a step, instead of the shape's");
  command
      ->add_option("--set", options->overrides,
                   "Set a field of the run config: train.compute_dtype=float32")
      ->allow_extra_args(false);
  add_device_option(*command, *device);
  command->add_option("--dump", options->dump,
                      "Folder for weights.safetensors and batch.safetensors of the first step");
  command->add_option("--profile", options->profile,
                      "File for a Chrome trace of the timed steps (chrome://tracing, "
                      "ui.perfetto.dev); prints where the time went");
  command->add_flag("--json", *json, "Print the result as a JSON line");
  command->footer(
      "OMP_NUM_THREADS sets the threads. Examples:\n"
      "  needle-train bench --config tiny\n"
      "  needle-train bench --config tiny --profile trace.json\n"
      "  needle-train bench --config pack4 --set train.compute_dtype=float32 --json");
  add_launch_options(*command, *launch);
  command->callback([options, device, json, launch] {
    launch_if_asked(*launch);
    set_device(options->overrides, *device);
    options->environment = rank_environment();
    run_bench(*options, *json);
  });
}

}  // namespace needle
