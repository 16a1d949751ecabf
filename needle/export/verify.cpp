#include "needle/export/verify.h"

#include <algorithm>
#include <cmath>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/model/checkpoint.h"
#include "needle/model/model_engine.h"
#include "needle/quant/weights_file.h"
#include "needle/runtime/engine.h"

namespace needle {
namespace {

TokenId best_token(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double magnitude(std::span<const float> logits) {
  double largest = 1;
  for (const float logit : logits) {
    largest = std::max(largest, std::abs(static_cast<double>(logit)));
  }
  return largest;
}

// Infinity where either is not a number: a difference that no tolerance allows.
double largest_difference(std::span<const float> a, std::span<const float> b) {
  NEEDLE_CHECK(a.size() == b.size(), "{} values against {}", a.size(), b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    largest = std::isfinite(difference) ? std::max(largest, difference) : INFINITY;
  }
  return largest;
}

// Sums over all steps, before they become shares and means.
struct Tally {
  double quantization_difference = 0;
  std::int64_t same_as_unquantized = 0;
};

void compare_prompt(const Engine& unquantized, const Engine& deployed, const Engine& runtime,
                    const std::vector<TokenId>& prompt, const VerifyOptions& options,
                    VerifyReport& report, Tally& tally) {
  const auto original = unquantized.start(prompt, options.max_tokens);
  const auto expected = deployed.start(prompt, options.max_tokens);
  const auto tested = runtime.start(prompt, options.max_tokens);
  TokenId token = kEosId;
  for (std::int64_t step = 0; step < options.max_tokens; ++step) {
    const auto original_logits = original->step(token);
    const auto expected_logits = expected->step(token);
    const auto tested_logits = tested->step(token);
    const double scale = magnitude(expected_logits);
    report.logit_difference = std::max(report.logit_difference,
                                       largest_difference(expected_logits, tested_logits) / scale);
    tally.quantization_difference += largest_difference(original_logits, expected_logits) / scale;
    token = best_token(expected_logits);
    const TokenId chosen = best_token(tested_logits);
    if (chosen != token) {
      const auto gap = static_cast<double>(expected_logits[static_cast<std::size_t>(token)] -
                                           expected_logits[static_cast<std::size_t>(chosen)]);
      ++(gap <= 2 * options.tolerance * scale ? report.ties : report.different_tokens);
    }
    tally.same_as_unquantized += best_token(original_logits) == token ? 1 : 0;
    ++report.tokens;
    if (token == kEosId) {
      if (!options.prompts.empty()) {
        break;
      }
      token = prompt[static_cast<std::size_t>(step) % prompt.size()];  // keeps going, on new ground
    }
  }
  report.embedding_difference =
      std::max(report.embedding_difference,
               largest_difference(deployed.embed(prompt), runtime.embed(prompt)));
}

}  // namespace

std::string VerifyReport::text() const {
  return format(
      "compared with LibTorch on the same deployed weights: {} prompts, {} tokens\n"
      "  largest difference of a logit   {:.2e}   (allowed {:.1e})\n"
      "  largest of an embedding         {:.2e}\n"
      "  different greedy tokens         {}   ({} ties)\n"
      "what quantisation changes: {:.1f} % of the largest logit on average, {:.1f} % of the tokens "
      "stay\n"
      "file: {} bytes ({:.2f} MB)",
      prompts, tokens, logit_difference, tolerance, embedding_difference, different_tokens, ties,
      100 * quantization_difference, 100 * same_tokens_as_unquantized, file_bytes,
      static_cast<double>(file_bytes) / 1e6);
}

std::vector<std::vector<TokenId>> random_prompts(const ModelConfig& config) {
  constexpr std::int64_t kLengths[] = {1, 5, 18, 64, 200};
  std::vector<std::vector<TokenId>> prompts;
  Random random(2024);
  for (const std::int64_t length : kLengths) {
    auto& prompt =
        prompts.emplace_back(static_cast<std::size_t>(std::min(length, config.max_seq_len)));
    for (TokenId& token : prompt) {
      token = static_cast<TokenId>(random.below(static_cast<std::uint32_t>(config.vocab_size)));
    }
  }
  auto& padded = prompts.emplace_back(prompts[2]);
  padded.back() = static_cast<TokenId>(config.pad_token_id);
  return prompts;
}

Needle deployed_model(const std::filesystem::path& weights_file) {
  const WeightsFile file(weights_file);
  Needle model(file.model_config());
  NamedTensors values;
  for (const TensorSpec& spec : expected_tensors(file.model_config())) {
    std::vector<float> weights;
    if (spec.is_matrix()) {
      weights = unpack_matrix(file.matrix(spec.name));
    } else {
      const auto stored = file.vector(spec.name);
      weights.assign(stored.begin(), stored.end());
    }
    values.emplace(spec.name, torch::from_blob(weights.data(), spec.shape).clone());
  }
  assign_parameters(model, values, weights_file.string());
  return model;
}

VerifyReport verify_weights(const Needle& model, const std::filesystem::path& weights_file,
                            const VerifyOptions& options) {
  const ModelConfig& config = model->config();
  // A copy: the caller's model keeps its mode, dtype, device and fake quantisation.
  Needle copy(config);
  NamedTensors parameters;
  for (const auto& [name, value] : named_parameters(model)) {
    parameters.emplace(name, to_host(value.to(torch::kFloat32)));
  }
  assign_parameters(copy, parameters, "the exported model");
  const ModelEngine unquantized(copy);
  const ModelEngine deployed(deployed_model(weights_file));
  const auto file = std::make_shared<const WeightsFile>(weights_file);
  const runtime::RuntimeEngine tested(runtime::Model::load(file), {.threads = options.threads});

  const auto prompts = options.prompts.empty() ? random_prompts(config) : options.prompts;
  VerifyReport report{.prompts = std::ssize(prompts),
                      .tolerance = options.tolerance,
                      .file_bytes = static_cast<std::int64_t>(file->size_bytes())};
  Tally tally;
  for (const std::vector<TokenId>& prompt : prompts) {
    compare_prompt(unquantized, deployed, tested, prompt, options, report, tally);
  }
  const auto steps = static_cast<double>(std::max<std::int64_t>(report.tokens, 1));
  report.quantization_difference = tally.quantization_difference / steps;
  report.same_tokens_as_unquantized = static_cast<double>(tally.same_as_unquantized) / steps;
  return report;
}

void check_verified(const VerifyReport& report, const std::string& where) {
  if (report.passed()) {
    return;
  }
  throw Error(
      format("{}: the runtime does not reproduce LibTorch: logits differ by {:.2e}, "
             "embeddings by {:.2e} (allowed {:.1e}), {} of {} greedy tokens differ; the "
             "file was not kept",
             where, report.logit_difference, report.embedding_difference, report.tolerance,
             report.different_tokens, report.tokens));
}

}  // namespace needle
