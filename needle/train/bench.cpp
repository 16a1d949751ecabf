#include "needle/train/bench.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <optional>

#include <torch/torch.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/random.h"
#include "needle/model/checkpoint.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/flops.h"
#include "needle/train/profile.h"
#include "needle/train/run_config.h"
#include "needle/train/run_setup.h"
#include "needle/train/train_step.h"

namespace needle {
namespace {

constexpr TokenId kFirstWord = 6;  // behind the special tokens

ModelConfig tiny_shape() {
  ModelConfig config = load_model_config("tiny");
  config.vocab_size = 4096;  // 1.9 million parameters
  return config;
}

RunConfig bench_config(const TrainBenchCase& shape, const TrainBenchOptions& options) {
  RunConfig config;
  config.model = shape.model;
  config.init = InitMethod::kReference;
  config.step.quant.every = 0;
  config.step.contrastive_every = 0;
  config.train.attention = AttentionKernel::kLayers;  // as the CPU configs
  config.optimizer.muon.symmetric_products = true;
  config.optimizer.muon.newton_schulz_dtype = NewtonSchulzDtype::kAuto;
  for (const std::string& assignment : options.overrides) {
    apply_override(config, assignment);
  }
  config.check("bench");
  return config;
}

void dump(const std::filesystem::path& folder, const Needle& model, const Batch& batch) {
  std::filesystem::create_directories(folder);
  save_model_parameters(model, folder / "weights.safetensors");
  const DeviceBatch tensors = to_device(batch, torch::kCPU, model->config().vocab_size, nullptr);
  NamedTensors named{{"source", tensors.input.source},
                     {"decoder_in", tensors.input.decoder_in},
                     {"target", tensors.target}};
  if (tensors.input.source_segments.defined()) {
    named["source_segments"] = tensors.input.source_segments;
    named["decoder_segments"] = tensors.input.decoder_segments;
  }
  save_tensors(folder / "batch.safetensors", named);
}

}  // namespace

Json TrainBenchResult::to_json() const {
  return {{"peer", "needle"},
          {"config", config},
          {"compute_dtype", compute_dtype},
          {"ranks", ranks},
          {"exchange", exchange},
          {"tokens_per_s", tokens_per_second},
          {"ms_step", step_ms},
          {"ms_step_min", step_ms_min},
          {"optimizer_ms", optimizer_ms},
          {"exchange_ms", exchange_ms},
          {"peak_rss_mb", peak_rss_mb},
          {"gflops", gflops},
          {"gemm_gflops", gemm_gflops},
          {"utilization", gflops / gemm_gflops},
          {"loss", loss}};
}

TrainBenchCase train_bench_case(const std::string& name) {
  if (name == "pre8") {
    return {.model = load_model_config("released"), .rows = 8, .enc_len = 256, .dec_len = 128};
  }
  if (name == "pack4") {
    return {.model = load_model_config("released"),
            .rows = 4,
            .enc_len = 1024,
            .dec_len = 512,
            .segments = 6};
  }
  if (name == "tiny") {
    return {.model = tiny_shape(), .rows = 16, .enc_len = 128, .dec_len = 48};
  }
  throw ConfigError(format("bench: no shape \"{}\"; give pre8, pack4 or tiny", name));
}

Batch train_bench_batch(const TrainBenchCase& shape, std::uint64_t seed) {
  Random random(seed);
  Batch batch{.rows = shape.rows, .enc_len = shape.enc_len, .dec_len = shape.dec_len};
  const auto words = static_cast<std::uint32_t>(shape.model.vocab_size - kFirstWord);
  const auto fill = [&](std::vector<TokenId>& ids, std::int64_t length) {
    for (std::int64_t i = 0; i < shape.rows * length; ++i) {
      ids.push_back(kFirstWord + static_cast<TokenId>(random.below(words)));
    }
  };
  const auto number = [&](std::vector<std::int32_t>& segments, std::int64_t length) {
    for (std::int64_t i = 0; i < shape.rows * length; ++i) {
      const auto segment = (i % length) / (length / shape.segments);
      segments.push_back(static_cast<std::int32_t>(std::min(segment, shape.segments - 1) + 1));
    }
  };
  fill(batch.source, shape.enc_len);
  fill(batch.decoder_in, shape.dec_len);
  fill(batch.target, shape.dec_len);
  if (shape.segments > 0) {
    number(batch.source_segments, shape.enc_len);
    number(batch.decoder_segments, shape.dec_len);
  }
  return batch;
}

// Rows [first, last) of a batch.
Batch rows_of(const Batch& batch, std::int64_t first, std::int64_t last) {
  Batch part{.rows = last - first, .enc_len = batch.enc_len, .dec_len = batch.dec_len};
  const auto take = [&](auto& to, const auto& from, std::int64_t length) {
    if (!from.empty()) {
      to.assign(from.begin() + first * length, from.begin() + last * length);
    }
  };
  take(part.source, batch.source, batch.enc_len);
  take(part.decoder_in, batch.decoder_in, batch.dec_len);
  take(part.target, batch.target, batch.dec_len);
  take(part.source_segments, batch.source_segments, batch.enc_len);
  take(part.decoder_segments, batch.decoder_segments, batch.dec_len);
  return part;
}

namespace {

// Of one more step, by the section that it names.
double measure_optimizer(const std::function<void()>& step) {
  Profile profile;
  step();
  profile.stop();
  for (const ProfileRow& row : profile.rows()) {
    if (row.name == "step: optimiser") {
      return row.total_ms;
    }
  }
  return 0.0;
}

// The middle of several, without a backward pass that would hide it.
double measure_exchange(DataParallel& replicas, const torch::Device& device) {
  constexpr int kRounds = 5;
  std::vector<double> times_ms;
  for (int i = 0; i < kRounds; ++i) {
    replicas.begin_step();
    replicas.ranks().barrier();
    const auto start = std::chrono::steady_clock::now();
    replicas.finish_backward(torch::zeros({4}, torch::TensorOptions().device(device)));
    replicas.share_parameters();
    synchronize(device);
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start;
    times_ms.push_back(elapsed.count());
  }
  std::sort(times_ms.begin(), times_ms.end());
  return times_ms[kRounds / 2];
}

}  // namespace

TrainBenchResult train_bench(const TrainBenchOptions& options) {
  if (options.steps < 1) {
    throw ConfigError(format("bench: {} steps: give 1 or more", options.steps));
  }
  TrainBenchCase shape = train_bench_case(options.config);
  if (options.rows > 0) {
    shape.rows = options.rows;
  }
  RunConfig config = bench_config(shape, options);
  const auto ranks = join_ranks(config, options.environment);
  const Batch whole = train_bench_batch(shape, config.train.seed);
  const RankEnvironment& env = options.environment;
  const std::int64_t first = env.rank * whole.rows / env.world;
  const std::int64_t last = (env.rank + 1) * whole.rows / env.world;
  if (first == last) {
    throw ConfigError(format("bench: {} rows for {} ranks: give --rows", whole.rows, env.world));
  }
  const std::int64_t part = config.train.micro_batch.count > 0
                                ? std::min(config.train.micro_batch.count, last - first)
                                : last - first;
  std::vector<Batch> batches;
  for (std::int64_t row = first; row < last; row += part) {
    batches.push_back(rows_of(whole, row, std::min(row + part, last)));
  }
  const StepCounts counts{.target_tokens = whole.target_tokens(),
                          .positions = whole.rows * whole.dec_len};
  Needle model = make_model(config);
  place_model(model, config.train);
  if (!options.dump.empty()) {
    dump(options.dump, model, whole);
  }
  const torch::Device device = model->embedding->weight.device();
  const auto replicas = ranks ? std::make_unique<DataParallel>(*ranks, model) : nullptr;
  Optimizer optimizer = replicas ? replicas->make_optimizer(config.optimizer, options.steps + 1)
                                 : Optimizer(model, config.optimizer, options.steps + 1);
  TrainStep step(model, optimizer, config.step, device, config.train.seed,
                 static_cast<std::uint64_t>(env.rank), replicas.get());

  TrainBenchResult result{.config = options.config,
                          .compute_dtype = c10::toString(model->compute_dtype()),
                          .ranks = env.world,
                          .exchange = ranks ? ranks->exchange() : "none"};
  result.loss = step.run(0, batches, nullptr, &counts).loss;
  const double products_before = product_gflops(model->compute_dtype(), device);
  std::optional<Profile> profile;
  if (!options.profile.empty()) {
    profile.emplace();
  }
  std::vector<double> times_ms;
  for (std::int64_t i = 1; i <= options.steps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (step.can_run_ahead()) {
      step.run_ahead(i, batches);
      step.finish();
    } else {
      step.run(i, batches, nullptr, &counts);
    }
    synchronize(device);
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - start;
    times_ms.push_back(elapsed.count());
  }
  if (profile) {
    profile->stop();
    profile->write_chrome_trace(options.profile);
    constexpr std::size_t kRows = 25;
    result.profile = profile->table(kRows);
  }
  result.optimizer_ms =
      measure_optimizer([&] { step.run(options.steps + 1, batches, nullptr, &counts); });
  result.exchange_ms = replicas ? measure_exchange(*replicas, device) : 0.0;
  std::sort(times_ms.begin(), times_ms.end());
  result.step_ms = times_ms[times_ms.size() / 2];
  result.step_ms_min = times_ms.front();
  const auto tokens = static_cast<double>(shape.rows * (shape.enc_len + shape.dec_len));
  result.tokens_per_second = 1000.0 * tokens / result.step_ms;
  const double flops = model_flops(shape.model, work_of(whole)) +
                       muon_flops(shape.model, config.optimizer.muon.newton_schulz_steps);
  result.gflops = flops / result.step_ms / 1e6;
  // Twice, since on a shared machine the short measurement may meet a slow moment.
  result.gemm_gflops = std::max(products_before, product_gflops(model->compute_dtype(), device));
  result.peak_rss_mb = static_cast<double>(memory_use(torch::kCPU).peak_bytes) / 1e6;
  return result;
}

}  // namespace needle
