#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

#include "apps/needle_run/commands.h"

namespace needle {
namespace {

struct BenchOptions {
  ModelOptions model;
  std::int64_t prompt_tokens = 200;
  std::int64_t tokens = 30;
  std::int64_t repeats = 5;
  bool json = false;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Largest resident size so far, 0 where the system does not tell.
std::int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) {
      return 1024 * std::stoll(line.substr(6));
    }
  }
  return 0;
}

void bench(const BenchOptions& options) {
  if (options.prompt_tokens < 1 || options.tokens < 1 || options.repeats < 1) {
    throw ConfigError("--prompt-tokens, --tokens and --repeats: expected at least 1");
  }
  const auto load_start = std::chrono::steady_clock::now();
  const runtime::LoadedModel model = options.model.load();
  const double load_seconds = seconds_since(load_start);

  Random random(1);
  const auto draw = [&] {
    return static_cast<TokenId>(
        random.below(static_cast<std::uint32_t>(model.engine().vocab_size())));
  };
  std::vector<TokenId> prompt(static_cast<std::size_t>(options.prompt_tokens));
  std::ranges::generate(prompt, draw);
  double prefill = 1e9;  // the best of all repeats: others use this machine, too
  double decode = 1e9;
  for (std::int64_t repeat = 0; repeat < options.repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    const auto session = model.engine().start(prompt, options.tokens);
    prefill = std::min(prefill, seconds_since(start));
    const auto decode_start = std::chrono::steady_clock::now();
    for (std::int64_t token = 0; token < options.tokens; ++token) {
      session->step(draw());
    }
    decode = std::min(decode, seconds_since(decode_start));
  }
  const double prefill_rate = static_cast<double>(options.prompt_tokens) / prefill;
  const double decode_rate = static_cast<double>(options.tokens) / decode;
  if (options.json) {
    std::cout << Json({{"kernels", model.engine().kernel_name()},
                       {"threads", options.model.threads},
                       {"load_ms", 1e3 * load_seconds},
                       {"prompt_tokens", options.prompt_tokens},
                       {"prefill_tokens_per_second", prefill_rate},
                       {"tokens", options.tokens},
                       {"decode_tokens_per_second", decode_rate},
                       {"call_ms", 1e3 * (prefill + decode)},
                       {"file_bytes", model.file_bytes()},
                       {"peak_resident_bytes", peak_resident_bytes()}})
                     .dump()
              << std::endl;
    return;
  }
  std::cout << format(
      "kernels  {}, {} thread(s)\n"
      "load     {:.0f} ms from {:.2f} MB\n"
      "prefill  {:.0f} tokens/s ({} tokens)\n"
      "decode   {:.0f} tokens/s ({} tokens)\n"
      "call     {:.1f} ms in all\n"
      "memory   {:.0f} MB resident at most\n",
      model.engine().kernel_name(), options.model.threads, 1e3 * load_seconds,
      static_cast<double>(model.file_bytes()) / 1e6, prefill_rate, options.prompt_tokens,
      decode_rate, options.tokens, 1e3 * (prefill + decode),
      static_cast<double>(peak_resident_bytes()) / 1e6);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  auto* command =
      app.add_subcommand("bench", "Measure load time, speed and memory on this machine");
  options->model.add_to(*command);
  command->add_option("--prompt-tokens", options->prompt_tokens, "Tokens encoded")
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens decoded")->capture_default_str();
  command->add_option("--repeats", options->repeats, "The best of so many counts")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object");
  command->callback([options] { bench(*options); });
}

}  // namespace needle
