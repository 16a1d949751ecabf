// How fast training steps are, on fixed shapes and random tokens: what `needle-train bench` runs,
// and what other implementations are compared with (scripts/bench/training).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "needle/core/json.h"
#include "needle/data/batch.h"
#include "needle/quant/model_config.h"
#include "needle/train/rank_environment.h"

namespace needle {

struct TrainBenchOptions {
  // pre8: released shape, 8 rows of 256 + 128 tokens; pack4: released shape, 4 packed rows of 1024
  // + 512 tokens, 6 segments each; tiny: 1.9 M parameters, 16 rows of 128 + 48 tokens.
  std::string config = "pre8";
  std::int64_t steps = 3;              // timed ones, after one that is not
  std::int64_t rows = 0;               // of a step, instead of the shape's; 0: the shape's
  std::vector<std::string> overrides;  // of a run config: train.compute_dtype=float32, ...
  // Writes weights.safetensors (as a checkpoint) and batch.safetensors there before the first step;
  // empty: no.
  std::filesystem::path dump;
  RankEnvironment environment;  // several ranks share the rows of each step
  // Writes a Chrome trace of the timed steps there and puts a table into the result; empty: no.
  std::filesystem::path profile;
};

struct TrainBenchResult {
  std::string config;
  std::string compute_dtype;
  std::int64_t ranks = 1;
  std::string exchange = "none";   // what carries tensors between ranks: Ranks::exchange()
  double tokens_per_second = 0.0;  // source and decoder positions, padding included
  double step_ms = 0.0;            // median
  double step_ms_min = 0.0;
  double optimizer_ms = 0.0;  // of a step: Muon and AdamW, on several ranks this one's share
  double exchange_ms = 0.0;   // several ranks: gradients to their owners and parameters back, alone
  double peak_rss_mb = 0.0;
  std::string profile;       // where the time went, as text
  double gflops = 0.0;       // of the model's and Muon's products, as the equations have them
  double gemm_gflops = 0.0;  // what a large product reaches on this machine in the compute type
  double loss = 0.0;         // of the first step: of the weights that `dump` holds

  Json to_json() const;
};

// One of the named shapes.
struct TrainBenchCase {
  ModelConfig model;
  std::int64_t rows = 0;
  std::int64_t enc_len = 0;
  std::int64_t dec_len = 0;
  std::int64_t segments = 0;  // a row; 0: not packed
};
TrainBenchCase train_bench_case(const std::string& name);  // throws ConfigError

// Random words without padding; the segments of a packed row are of one length, but for the last.
Batch train_bench_batch(const TrainBenchCase& shape, std::uint64_t seed);

// Throws ConfigError on an unknown shape or setting.
TrainBenchResult train_bench(const TrainBenchOptions& options);

}  // namespace needle
