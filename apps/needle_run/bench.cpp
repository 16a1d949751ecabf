#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/progress.h"
#include "needle/core/random.h"

#include "apps/needle_run/commands.h"
#include "apps/needle_run/random_weights.h"

namespace needle {
namespace {

struct BenchOptions {
  ModelOptions model;
  std::string keep;
  std::string logits;
  std::int64_t repeats = 20;
  bool json = false;
  bool kernels = false;
};

struct Metric {
  std::string name;
  double value = 0;
  std::string_view meaning;
};

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// What the process has for itself, mapped files left out; 0 where the system does not tell.
double anonymous_megabytes() {
  std::ifstream maps("/proc/self/smaps_rollup");
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with("Anonymous:")) {
      return static_cast<double>(std::stoll(line.substr(10))) * 1024 / 1e6;
    }
  }
  return 0;
}

double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(share * last + 0.5)];
}

// Times of one engine, each the median of the repeats.
class EngineBench {
 public:
  EngineBench(const Engine& engine, std::int64_t repeats) : engine_(engine), repeats_(repeats) {}

  std::vector<TokenId> prompt(std::int64_t count) {
    std::vector<TokenId> tokens(static_cast<std::size_t>(count));
    std::ranges::generate(tokens, [&] { return draw(); });
    return tokens;
  }

  // Encoder and cross keys and values; then the first `steps` tokens, if any.
  std::vector<double> starts(std::int64_t tokens, std::int64_t steps) {
    std::vector<double> times;
    for (std::int64_t repeat = 0; repeat < repeats_; ++repeat) {
      const auto input = prompt(tokens);
      const auto start = Clock::now();
      const auto session = engine_.start(input, std::max<std::int64_t>(steps, 1));
      for (std::int64_t step = 0; step < steps; ++step) {
        session->step(draw());
      }
      times.push_back(milliseconds_since(start));
    }
    return times;
  }

  double decode_rate(std::int64_t tokens, std::int64_t steps) {
    const auto session = engine_.start(prompt(tokens), steps);
    std::vector<double> times;
    for (std::int64_t repeat = 0; repeat < repeats_; ++repeat) {
      session->rewind(0);
      const auto start = Clock::now();
      for (std::int64_t step = 0; step < steps; ++step) {
        session->step(draw());
      }
      times.push_back(milliseconds_since(start));
    }
    return 1e3 * static_cast<double>(steps) / quantile(times, 0.5);
  }

 private:
  TokenId draw() {
    return static_cast<TokenId>(random_.below(static_cast<std::uint32_t>(engine_.vocab_size())));
  }

  const Engine& engine_;
  std::int64_t repeats_;
  Random random_{1};
};

// What is measured: a file with all that serving needs.
struct Subject {
  runtime::LoadedModel model;
  double load_ms = 0;

  const runtime::RuntimeEngine& engine() const { return model.engine(); }
};

Subject open(const BenchOptions& options) {
  ModelOptions named = options.model;
  std::optional<RandomWeights> random;
  if (!named.random_weights.empty()) {
    if (options.keep.empty()) {
      named.model = random.emplace(named.random_weights).path().string();
    } else {
      write_random_weights(named.random_weights, options.keep);
      named.model = options.keep;
    }
    named.random_weights.clear();
  }
  named.load();  // reads the file once: then it is warm
  const auto start = Clock::now();
  runtime::LoadedModel model = named.load();
  const double load_ms = milliseconds_since(start);
  return {.model = std::move(model), .load_ms = load_ms};
}

// Logits of 16 steps after a prompt of 64 tokens, float32 [16, V], for holding another program with
// the same weights against this one. Token i of either is 6 + 7919 i mod (V - 6), the first step's
// eos.
void write_logits(const Engine& engine, const std::string& path) {
  const auto token = [&](std::int64_t i) {
    return static_cast<TokenId>(6 + i * 7919 % (engine.vocab_size() - 6));
  };
  std::vector<TokenId> prompt(64);
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = token(static_cast<std::int64_t>(i));
  }
  constexpr std::int64_t kSteps = 16;
  const auto session = engine.start(prompt, kSteps);
  std::string bytes;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const auto logits = std::as_bytes(session->step(step == 0 ? kEosId : token(step)));
    bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size());
  }
  write_file_atomic(path, bytes);
}

std::vector<Metric> measure(const Subject& subject, std::int64_t repeats) {
  EngineBench bench(subject.engine(), repeats);
  Progress progress("bench", 7, "measurements");
  std::vector<Metric> metrics;
  const auto add = [&](std::string name, double value, std::string_view meaning) {
    metrics.push_back({std::move(name), value, meaning});
    progress.set(metrics.size());
  };
  bench.starts(256, 2);  // wakes threads and clock
  for (const std::int64_t tokens : {64, 256, 1024}) {
    add(format("prefill_tok_s_{}", tokens),
        1e3 * static_cast<double>(tokens) / quantile(bench.starts(tokens, 0), 0.5),
        "prompt tokens a second: encoder and cross keys and values");
  }
  add("decode_tok_s", bench.decode_rate(256, 64), "answer tokens a second, prompt of 256");
  add("ttft_ms_256", quantile(bench.starts(256, 1), 0.5), "first logits of a prompt of 256");
  const std::vector<double> calls = bench.starts(200, 30);
  add("call_ms_200_30", quantile(calls, 0.5), "a call of 200 + 30 tokens, median");
  add("call_p95_ms_200_30", quantile(calls, 0.95), "the same, 95th percentile");
  add("load_ms", subject.load_ms, "opening the file again, its pages in memory");
  add("file_mb", static_cast<double>(subject.model.file_bytes()) / 1e6, "size of the file");
  const auto session = subject.engine().start(bench.prompt(1024), 64);
  add("anon_mb", anonymous_megabytes(), "memory of its own with one session of 1024 tokens");
  return metrics;
}

// Billions of multiplications a second, the best of the repeats: what other processes take is not
// the kernel's.
template <typename Body>
double best_rate(std::int64_t repeats, Body&& body) {
  double best = 0;
  for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
    const auto start = Clock::now();
    const std::int64_t work = body();
    best = std::max(best, static_cast<double>(work) / milliseconds_since(start) / 1e6);
  }
  return best;
}

// One thread's products with a matrix of the model against what its instructions could do.
std::vector<Metric> measure_kernels(const runtime::Model& model, std::int64_t repeats) {
  const runtime::Kernels& kernels = runtime::select_kernels();
  const runtime::Matrix& matrix = model.decoder.at(0).self.attention.q_proj;
  if (kernels.peak == nullptr || !matrix.is_int4()) {
    throw ConfigError(format(
        "--kernels measures 4-bit matrices with avx512vnni; here are {} kernels", kernels.name));
  }
  constexpr std::int64_t kRows = 252;  // whole tiles of 6
  std::vector<float> x(static_cast<std::size_t>(kRows * matrix.in()), 0.5f);
  std::vector<float> y(static_cast<std::size_t>(kRows * model.embedding.out()));
  const runtime::Machine machine{.kernels = &kernels};
  runtime::Int8Buffer buffer(runtime::Numerics::kInt8, kRows, matrix.in());
  runtime::ConstInt8Rows codes = buffer.quantize(machine, runtime::Numerics::kInt8,
                                                 {x.data(), kRows, matrix.in()}, matrix.in());
  const auto product = [&](const runtime::Matrix& by, std::int64_t rows, std::int64_t times) {
    codes.count = rows;
    for (std::int64_t i = 0; i < times; ++i) {
      kernels.multiply_int4(by.int4(), codes, {y.data(), rows, by.out()}, 0,
                            runtime::padded(by.out()) / runtime::kPanelWidth);
    }
    return by.in() * by.out() * rows * times;
  };
  const double peak = best_rate(repeats, [&] { return kernels.peak(5000); });
  const double gemm = best_rate(repeats, [&] { return product(matrix, kRows, 4); });
  const double gemv = best_rate(repeats, [&] { return product(model.embedding, 1, 8); });
  return {{"peak_gmac_s", peak, "8-bit dot products alone, 10^9 multiplications a second"},
          {"gemm_gmac_s", gemm, "252 rows by a 4-bit matrix (prefill)"},
          {"gemm_percent_of_peak", 100 * gemm / peak, "the same"},
          {"gemv_gmac_s", gemv, "1 row by the embedding (decoding)"},
          {"gemv_percent_of_peak", 100 * gemv / peak, "the same"}};
}

void bench(const BenchOptions& options) {
  if (options.repeats < 1) {
    throw ConfigError("--repeats: expected at least 1");
  }
  if (!options.keep.empty() && options.model.random_weights.empty()) {
    throw ConfigError("--keep: only random weights are not kept anyway; give --random-weights");
  }
  const Subject subject = open(options);
  if (!options.logits.empty()) {
    write_logits(subject.engine(), options.logits);
    return;
  }
  const std::vector<Metric> metrics =
      options.kernels ? measure_kernels(subject.engine().model(), options.repeats)
                      : measure(subject, options.repeats);
  if (options.json) {
    for (const Metric& metric : metrics) {
      std::cout << Json({{"metric", metric.name},
                         {"threads", options.kernels ? 1 : options.model.threads},
                         {"value", metric.value},
                         {"kernels", subject.engine().kernel_name()},
                         {"numerics",
                          runtime::kNumericsNames.name(subject.engine().model().numerics)}})
                       .dump()
                << '\n';
    }
    std::cout << std::flush;
    return;
  }
  std::cout << format("kernels {}, {}, {} thread(s), {} of {}\n", subject.engine().kernel_name(),
                      options.model.numerics, options.kernels ? 1 : options.model.threads,
                      options.kernels ? "best" : "medians", options.repeats);
  for (const Metric& metric : metrics) {
    std::cout << format("{:<20} {:>10.2f}   {}\n", metric.name, metric.value, metric.meaning);
  }
  std::cout << std::flush;
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  auto* command = app.add_subcommand("bench", "Measure speed, load time and memory here");
  options->model.add_to(*command);
  command->add_option("--keep", options->keep, "With --random-weights: keep them in this file");
  command->add_option("--logits", options->logits,
                      "Only write the logits of 16 fixed steps, float32, to this file");
  command->add_option("--repeats", options->repeats, "Repeats of each measurement; medians count")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object {metric, threads, value} a line");
  command->add_flag("--kernels", options->kernels,
                    "Only the matrix products on one thread, against the dot products' peak");
  command->footer(
      "  needle-run bench --model model.needle --threads 2\n"
      "  needle-run bench --random-weights configs/model/released.json --json");
  command->callback([options] { bench(*options); });
}

}  // namespace needle
