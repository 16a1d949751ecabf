#include <array>
#include <cstdint>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/progress.h"
#include "needle/core/thread_pool.h"
#include "needle/data/jsonl_reader.h"
#include "needle/data/prepare.h"
#include "needle/train/device.h"
#include "needle/train/device_plugin.h"
#include "needle/train/perplexity.h"
#include "needle/train/saved_model.h"

#include "apps/needle_eval/commands.h"
#include "apps/needle_eval/options.h"

namespace needle {
namespace {

struct PerplexityOptions {
  std::string model;
  std::string tokenizer;
  std::string data;
  std::string kind = "calls";
  std::string device = "auto";
  std::vector<std::string> device_plugins;
  std::int64_t limit = 0;
  std::int64_t batch_rows = 8;
  bool json = false;
};

PackedDataset read_dataset(const PerplexityOptions& options, const SavedModel& saved) {
  PrepareConfig config;
  config.kind = *kRowKindNames.parse(options.kind);
  config.prompt = saved.prompt;
  const ReadOptions reading{.max_rows = options.limit};
  ThreadPool pool(0);
  if (config.kind == RowKind::kPretrain) {
    std::vector<PretrainExample> examples;
    for_each_pretrain_example(
        options.data, [&](PretrainExample example) { examples.push_back(std::move(example)); },
        reading);
    return make_dataset(examples, saved.tokenizer, config, pool);
  }
  std::vector<CallExample> examples;
  for_each_call_example(
      options.data, [&](CallExample example) { examples.push_back(std::move(example)); }, reading);
  return make_dataset(examples, saved.tokenizer, config, pool);
}

void perplexity(const PerplexityOptions& options) {
  load_device_plugins(options.device_plugins);
  const torch::Device device = choose_device(options.device);
  SavedModel saved = load_saved_model(options.model, options.tokenizer);
  const PackedDataset dataset = read_dataset(options, saved);
  saved.model->to(device);

  std::vector<std::int64_t> rows(static_cast<std::size_t>(dataset.row_count()));
  std::iota(rows.begin(), rows.end(), 0);
  std::size_t next = 0;
  Progress progress("perplexity", rows.size(), "rows");
  const auto next_batch = [&](Batch& batch) {
    progress.set(next);
    const std::size_t size =
        std::min(static_cast<std::size_t>(options.batch_rows), rows.size() - next);
    if (size > 0) {
      dataset.fill_batch(std::span(rows).subspan(next, size), batch);
      next += size;
    }
    return size > 0;
  };
  constexpr std::array kModes = {FakeQuant::kNone, FakeQuant::kInt8, FakeQuant::kInt4};
  const PerplexityReport report = measure_perplexity(saved.model, device, next_batch, kModes);
  const EncodeReport& encoded = dataset.info().report;
  if (options.json) {
    Json json = {{"model", options.model},
                 {"data", options.data},
                 {"examples", encoded.kept},
                 {"dropped", encoded.rows - encoded.kept},
                 {"rows", dataset.row_count()},
                 {"tokens", report.tokens},
                 {"perplexity", report.perplexity[0]},
                 {"perplexity_int8", report.perplexity[1]},
                 {"perplexity_int4", report.perplexity[2]}};
    std::cout << json.dump() << std::endl;
    return;
  }
  std::cout << format("{}\n{} target tokens\n", encoded.text(), report.tokens);
  for (std::size_t i = 0; i < kModes.size(); ++i) {
    std::cout << format("perplexity, kernels {:<5} {:.4f}\n",
                        kModes[i] == FakeQuant::kNone ? "float" : kFakeQuantNames.name(kModes[i]),
                        report.perplexity[i]);
  }
  std::cout << std::flush;
}

}  // namespace

void add_perplexity_command(CLI::App& app) {
  auto options = std::make_shared<PerplexityOptions>();
  auto* command = app.add_subcommand(
      "perplexity", "How surprised a checkpoint is by the right answers, with and without INT4");
  command->add_option("--model", options->model, "Checkpoint folder, run folder or needle.pkl")
      ->required();
  command->add_option("--data", options->data, "JSONL file of rows, plain or gzip")->required();
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model, for a needle.pkl without one beside it");
  command->add_option("--kind", options->kind, "Rows: function calls or pretraining text")
      ->check(CLI::IsMember({"calls", "pretrain"}))
      ->capture_default_str();
  command->add_option("--limit", options->limit, "Take the first N rows; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--batch-rows", options->batch_rows, "Rows in one forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_device_options(*command, options->device, options->device_plugins);
  command->add_flag("--json", options->json, "Print the figures as JSON");
  command->footer(
      "exp of the mean cross-entropy per target token, without weights. Rows are encoded as in\n"
      "training; answers that do not fit are left out and counted.\n"
      "  needle-eval perplexity --model runs/mine --data valid.jsonl");
  command->callback([options] { perplexity(*options); });
}

}  // namespace needle
