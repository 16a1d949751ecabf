#include "needle/train/run_setup.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/log.h"
#include "needle/core/progress.h"
#include "needle/core/random.h"
#include "needle/core/thread_pool.h"
#include "needle/data/jsonl_reader.h"
#include "needle/model/checkpoint.h"
#include "needle/model/init.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

fs::path cache_folder(const DataConfig& data) {
  return data.cache.empty() ? needle_home() / "datasets" : data.cache;
}

PackedDataset prepare(const std::vector<fs::path>& files, const Tokenizer& tokenizer,
                      const DataConfig& data, ThreadPool& pool) {
  Progress progress("encoding", 0, "rows");
  const PreparedDataset prepared =
      prepare_dataset(files, tokenizer, data.rows, cache_folder(data), pool,
                      [&](std::int64_t rows) { progress.set(static_cast<std::uint64_t>(rows)); });
  for (const RowProblem& problem : prepared.problems) {
    log_warning("row left out: {}", problem.text());
  }
  log_info("{}{}", prepared.dataset.info().report.text(),
           prepared.reused ? " (encoded earlier)" : "");
  return prepared.dataset;
}

std::vector<std::int64_t> all_rows(const PackedDataset& dataset) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(dataset.row_count()));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  return rows;
}

std::string hash_of(std::span<const CallExample> examples, const Tokenizer& tokenizer,
                    const PrepareConfig& config) {
  std::string text = to_json(config).dump() + tokenizer.fingerprint();
  for (const CallExample& example : examples) {
    text += to_jsonl(example);
  }
  return sha256_hex(text);
}

// Float32 values that a training step keeps, roughly: parameters with their gradients and moments,
// and what the backward pass needs of each layer. The constants fit measured peaks (small shape, 12
// rows of 448 + 112 tokens): 0.9 GB with fused attention, 1.8 GB with exact.
std::int64_t estimated_bytes(const ModelConfig& model, const TrainConfig& train,
                             const PromptConfig& prompt) {
  const std::int64_t embedding = model.vocab_size * model.d_model;
  const std::int64_t kernels = model.parameter_count() - embedding;
  const std::int64_t state = 2 * model.parameter_count() + kernels + 2 * embedding;
  const std::int64_t T = prompt.max_enc_len, L = prompt.max_dec_len, d = model.d_model,
                     H = model.num_heads;
  constexpr std::int64_t kPerToken = 16;  // copies of the stream that one attention keeps
  const std::int64_t per_score = train.attention == AttentionKernel::kFused    ? 0
                                 : train.attention == AttentionKernel::kLayers ? 1
                                                                               : 2;
  const std::int64_t encoder =
      model.num_encoder_layers * (T * d * kPerToken + H * T * T * per_score);
  const std::int64_t decoder = model.num_decoder_layers * (2 * L * d * kPerToken + T * d * 4 +
                                                           H * (L * L + L * T) * per_score);
  const std::int64_t rows = train.micro_batch.count > 0
                                ? std::min(train.micro_batch.count, train.batch_size)
                                : train.batch_size;
  return 4 * (state + rows * (encoder + decoder));
}

Tokenizer make_own_tokenizer(const RunConfig& config, std::span<const fs::path> texts, bool resume);

}  // namespace

std::unique_ptr<Ranks> join_ranks(RunConfig& config, const RankEnvironment& environment) {
  config.train.device = device_of_rank(config.train.device, environment);
  if (environment.rank > 0) {
    set_log_level(LogLevel::kWarning);
  }
  auto ranks = Ranks::join(environment, choose_device(config.train.device),
                           {.exchange = config.train.exchange,
                            .silence_s = config.train.rank_silence_s,
                            .progress_s = config.train.rank_progress_s});
  if (ranks) {
    log_info("{} ranks, started by {}{}, exchange: {}", ranks->world(), environment.launcher,
             environment.restarts > 0 ? format(", restart {}", environment.restarts) : "",
             ranks->exchange());
  }
  return ranks;
}

void check_run_folder(const fs::path& folder, bool resume) {
  if (!resume && !CheckpointFolder(folder).list().empty()) {
    throw ConfigError(format(
        "{} holds a run already: go on with it with --resume, or give another folder with --output",
        folder));
  }
}

Tokenizer make_tokenizer(const RunConfig& config, std::span<const fs::path> texts, bool resume,
                         Ranks* ranks) {
  if (ranks == nullptr) {
    return make_own_tokenizer(config, texts, resume);
  }
  std::string bytes;
  if (ranks->is_first()) {
    bytes = make_own_tokenizer(config, texts, resume).model_bytes();
  }
  return Tokenizer::from_bytes(ranks->broadcast(bytes), "the first rank's tokenizer");
}

namespace {

Tokenizer make_own_tokenizer(const RunConfig& config, std::span<const fs::path> texts,
                             bool resume) {
  std::vector<std::string> warnings;
  if (const auto checkpoint =
          resume ? CheckpointFolder(config.output).newest_valid(warnings) : std::nullopt) {
    return Tokenizer::load(checkpoint->path / "tokenizer.model");
  }
  if (!config.tokenizer.file.empty()) {
    return Tokenizer::load(config.tokenizer.file);
  }
  TokenizerTrainerConfig settings = config.tokenizer.train;
  if (settings.vocab_size != TokenizerTrainerConfig{}.vocab_size &&
      settings.vocab_size != config.model.vocab_size) {
    throw ConfigError(format(
        "tokenizer.train.vocab_size = {} and model.vocab_size = {}: set only model.vocab_size",
        settings.vocab_size, config.model.vocab_size));
  }
  settings.vocab_size = config.model.vocab_size;
  const std::span<const fs::path> files =
      config.tokenizer.texts.empty() ? texts : std::span<const fs::path>(config.tokenizer.texts);
  std::vector<std::string> lines;
  for (const fs::path& file : files) {
    for_each_text(file, [&lines](std::string_view text) { lines.emplace_back(text); });
  }
  const TrainedTokenizer trained = train_tokenizer(lines, settings);
  log_info("tokenizer of {} pieces trained on {} texts{}", trained.tokenizer.vocab_size(),
           trained.lines,
           trained.long_lines > 0 ? format(", {} longer ones left out", trained.long_lines) : "");
  if (trained.tokenizer.vocab_size() < settings.vocab_size) {
    log_warning("the text fills no more than {} of {} pieces: the vocabulary is that small",
                trained.tokenizer.vocab_size(), settings.vocab_size);
  }
  return trained.tokenizer;
}

}  // namespace

Needle make_model(const RunConfig& config) {
  Needle model(config.model, config.train.dropout);
  init_parameters(model, config.init, derive_seed(config.train.seed, "init"));
  return model;
}

void place_model(Needle& model, const TrainConfig& train) {
  const torch::Device device = choose_device(train.device);
  model->to(device);
  // Whole layers and ranges are loops of the CPU; on any other device LibTorch's operators compute.
  const bool for_cpu_only = takes_ranges(train.attention);
  if (for_cpu_only && !device.is_cpu()) {
    log_info("train.attention = {} is for the CPU; {} takes fused",
             EnumTable<AttentionKernel>::value.name(train.attention), device.str());
  }
  model->set_attention_kernel(for_cpu_only && !device.is_cpu() ? AttentionKernel::kFused
                                                               : train.attention);
  model->set_activation_checkpointing(train.activation_checkpointing);
  model->set_compute_dtype(choose_compute_dtype(train.compute_dtype, device));
}

HeldOut hold_out_rows(std::int64_t row_count, std::int64_t count, std::uint64_t seed) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(row_count));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  Random random(derive_seed(seed, "held-out rows"));
  random.shuffle(std::span<std::int64_t>(order));
  const auto border = order.begin() + std::min(count, row_count / 10);
  HeldOut result{.train = {border, order.end()}, .validation = {order.begin(), border}};
  std::sort(result.train.begin(), result.train.end());
  std::sort(result.validation.begin(), result.validation.end());
  return result;
}

RunData load_run_data(const RunConfig& config, const Tokenizer& tokenizer, Ranks* ranks) {
  if (ranks != nullptr) {
    std::optional<RunData> data;
    ranks->one_per_host_first([&] { data = load_run_data(config, tokenizer); });
    return std::move(*data);
  }
  if (config.data.train.empty()) {
    throw ConfigError(
        "data.train is empty: name at least one JSONL file, with --data or in the config");
  }
  ThreadPool pool;
  PackedDataset dataset = prepare(config.data.train, tokenizer, config.data, pool);
  const std::string hash = dataset.info().content_hash;
  if (config.data.validation.empty()) {
    HeldOut rows =
        hold_out_rows(dataset.row_count(), config.data.validation_rows, config.train.seed);
    return {
        .train = {.dataset = dataset, .rows = std::move(rows.train), .hash = hash},
        .validation = {.datasets = {dataset}, .rows = std::move(rows.validation), .examples = {}}};
  }
  const PackedDataset held_out = prepare(config.data.validation, tokenizer, config.data, pool);
  ValidationData validation{.datasets = {held_out}, .rows = all_rows(held_out), .examples = {}};
  if (config.data.rows.kind == RowKind::kCalls) {
    for (const fs::path& file : config.data.validation) {
      std::vector<CallExample> examples = read_call_examples(file);
      std::move(examples.begin(), examples.end(), std::back_inserter(validation.examples));
    }
  }
  return {.train = {.dataset = dataset, .rows = all_rows(dataset), .hash = hash},
          .validation = std::move(validation)};
}

RunData make_run_data(const RunConfig& config, const Tokenizer& tokenizer,
                      std::span<const CallExample> train, std::span<const CallExample> validation) {
  ThreadPool pool;
  const PackedDataset dataset = make_dataset(train, tokenizer, config.data.rows, pool);
  log_info("training: {}", dataset.info().report.text());
  RunData data{.train = {.dataset = dataset,
                         .rows = all_rows(dataset),
                         .hash = hash_of(train, tokenizer, config.data.rows)},
               .validation = {}};
  if (!validation.empty()) {
    data.validation.datasets = {make_dataset(validation, tokenizer, config.data.rows, pool)};
    data.validation.rows = all_rows(data.validation.datasets.front());
    data.validation.examples.assign(validation.begin(), validation.end());
  }
  return data;
}

RunPlan plan_run(const RunConfig& config, const Needle& model, const TrainingData& data,
                 std::int64_t steps_per_epoch) {
  const TrainConfig& train = config.train;
  const std::int64_t asked = train.max_steps > 0 ? train.max_steps : train.epochs * steps_per_epoch;
  return {.parameters = model->config().parameter_count(),
          .examples = data.dataset.example_count(),
          .rows = static_cast<std::int64_t>(data.rows.size()),
          .source_tokens = data.dataset.source_tokens(),
          .target_tokens = data.dataset.target_tokens(),
          .steps_per_epoch = steps_per_epoch,
          .steps = train.time_budget_s > 0.0 ? 0 : asked,
          .memory_bytes = estimated_bytes(model->config(), train, config.data.rows.prompt),
          .device = choose_device(train.device).str()};
}

Json RunPlan::to_json() const {
  return {{"kind", "plan"},
          {"parameters", parameters},
          {"examples", examples},
          {"rows", rows},
          {"source_tokens", source_tokens},
          {"target_tokens", target_tokens},
          {"steps_per_epoch", steps_per_epoch},
          {"steps", steps},
          {"memory_bytes", memory_bytes},
          {"device", device}};
}

std::string RunPlan::text() const {
  return format(
      "parameters  {:.2f} M\n"
      "data        {} examples in {} rows: {} encoder and {} decoder tokens\n"
      "steps       {} ({} an epoch)\n"
      "memory      about {:.1f} GiB\n"
      "device      {}",
      static_cast<double>(parameters) / 1e6, examples, rows, source_tokens, target_tokens,
      steps > 0 ? format("{}", steps) : "as many as fit into the time budget", steps_per_epoch,
      static_cast<double>(memory_bytes) / static_cast<double>(std::int64_t{1} << 30), device);
}

}  // namespace needle
