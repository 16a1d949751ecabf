// What the tests of needle/model share: small models, golden configs, differences of tensors.
#pragma once

#include <limits>
#include <string>

#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/fields.h"
#include "needle/core/json.h"
#include "needle/model/init.h"
#include "needle/model/needle.h"
#include "needle/model/released_checkpoint.h"
#include "needle/quant/released_params.h"

#include "tests/support/golden.h"

namespace needle::test {

// The largest absolute difference; fails the test and is infinite when the shapes differ.
inline double largest_difference(const torch::Tensor& actual, const torch::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) {
    ADD_FAILURE() << "shape " << actual.sizes() << ", expected " << expected.sizes();
    return std::numeric_limits<double>::infinity();
  }
  const auto difference =
      (actual.detach().to(torch::kFloat64) - expected.to(torch::kFloat64)).abs();
  return difference.numel() == 0 ? 0.0 : difference.max().item<double>();
}

inline bool same_values(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && torch::equal(a, b);
}

// A config as the reference writes it: fields that are ours, over the defaults of its config class.
inline ModelConfig released_config(const std::string& golden_path) {
  const Json known = to_json(ModelConfig{});
  Json ours = Json::object();
  const Json all = read_json_file(golden(golden_path));
  for (const auto& [key, value] : all.items()) {
    if (known.contains(key)) {
      ours[key] = value;
    }
  }
  return from_json(ours, golden_path, released_config_defaults());
}

// The model of checkpoint/, whose numbers the folders forward/ and quant/ were made with.
inline Needle golden_model() {
  return load_released_safetensors(golden("checkpoint/tiny_f32.safetensors"),
                                   released_config("checkpoint/tiny_config.json"));
}

inline ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 50;
  config.d_model = 24;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.num_encoder_layers = 2;
  config.num_decoder_layers = 2;
  config.d_ff = 40;
  config.max_seq_len = 32;
  config.contrastive_dim = 8;
  return config;
}

// Every parameter random, norm scales, gates and biases included, so nothing hides behind a zero.
inline Needle random_model(const ModelConfig& config, std::uint64_t seed) {
  Needle model(config);
  torch::manual_seed(seed);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) {
    parameter.copy_(torch::randn(parameter.sizes()) * (parameter.dim() == 2 ? 0.3 : 0.5));
  }
  return model;
}

inline torch::Tensor random_tokens(const ModelConfig& config, std::int64_t rows,
                                   std::int64_t length) {
  return torch::randint(6, config.vocab_size, {rows, length}, torch::kInt64);
}

}  // namespace needle::test
