#include "needle/model/needle.h"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/model/eval_scope.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

using test::largest_difference;

// Tolerances of tests/golden/README.md.
constexpr double kForward = 2e-5;
constexpr double kEmbedding = 1e-5;
constexpr double kQuantised = 5e-5;
constexpr double kQuantisedEmbedding = 2e-5;
constexpr double kBfloat16 = 0.1;

torch::Tensor ids(const NamedTensors& file, const std::string& name) {
  return file.at(name).to(torch::kInt64);
}

ModelInput padded_input(const NamedTensors& file) {
  return {.source = ids(file, "source"), .decoder_in = ids(file, "decoder_in")};
}

torch::Tensor encoder_output(Needle& model, const ModelInput& input) {
  return model->encode(input.source, make_masks(input, model->config().pad_token_id).source);
}

TEST(ForwardGolden, PaddedRows) {
  auto model = test::golden_model();
  const EvalScope evaluation(*model);
  const auto file = load_tensors(test::golden("forward/padded.safetensors"));
  for (const auto kernel :
       {AttentionKernel::kExact, AttentionKernel::kFused, AttentionKernel::kLayers}) {
    model->set_attention_kernel(kernel);
    ModelInput input = padded_input(file);
    EXPECT_LE(largest_difference(encoder_output(model, input), file.at("encoder_out")), kForward);
    EXPECT_LE(largest_difference(model->forward(input), file.at("logits")), kForward);
    input.mask_decoder_padding = false;
    EXPECT_LE(largest_difference(model->forward(input), file.at("logits_causal_only")), kForward);
    EXPECT_LE(largest_difference(model->embed(ids(file, "contrastive_tokens")),
                                 file.at("contrastive_embedding")),
              kEmbedding);
  }
  EXPECT_GT(largest_difference(file.at("logits"), file.at("logits_causal_only")), kForward);
}

TEST(ForwardGolden, EveryBlockOfThePaddedRows) {
  auto model = test::golden_model();
  const EvalScope evaluation(*model);
  const auto padded = load_tensors(test::golden("forward/padded.safetensors"));
  const auto file = load_tensors(test::golden("forward/padded_blocks.safetensors"));
  const auto rows = file.at("embedded_source").size(0);
  const ModelInput input{.source = ids(padded, "source").narrow(0, 0, rows),
                         .decoder_in = ids(padded, "decoder_in").narrow(0, 0, rows)};
  const auto& config = model->config();
  const auto masks = make_masks(input, config.pad_token_id);
  auto rope = make_rope(input.source.size(1), config.head_dim(), config.rope_theta, torch::kCPU);
  EXPECT_LE(largest_difference(rope.cos, file.at("rope_cos")), kForward);
  EXPECT_LE(largest_difference(rope.sin, file.at("rope_sin")), kForward);

  auto x = model->embedding(input.source, torch::kFloat32);
  EXPECT_LE(largest_difference(x, file.at("embedded_source")), kForward);
  for (std::size_t i = 0; i < model->encoder->layers->size(); ++i) {
    x = model->encoder->layers[i]->as<EncoderBlock>()->forward(x, AttentionMask(masks.source),
                                                               rope);
    EXPECT_LE(largest_difference(x, file.at("encoder_block_" + std::to_string(i))), kForward);
  }
  const auto encoder_out = model->encoder->final_norm(x);
  auto y = model->embedding(input.decoder_in, torch::kFloat32);
  rope = make_rope(input.decoder_in.size(1), config.head_dim(), config.rope_theta, torch::kCPU);
  for (std::size_t i = 0; i < model->decoder->layers->size(); ++i) {
    y = model->decoder->layers[i]->as<DecoderBlock>()->forward(
        y, encoder_out, AttentionMask(masks.decoder), AttentionMask(masks.cross), rope);
    EXPECT_LE(largest_difference(y, file.at("decoder_block_" + std::to_string(i))), kForward);
  }
  EXPECT_LE(largest_difference(model->decoder->final_norm(y), file.at("decoder_final")), kForward);
}

TEST(ForwardGolden, PackedRows) {
  auto model = test::golden_model();
  const EvalScope evaluation(*model);
  const auto file = load_tensors(test::golden("forward/packed.safetensors"));
  ModelInput input = padded_input(file);
  input.source_segments = file.at("encoder_segments");
  input.decoder_segments = file.at("decoder_segments");
  for (const auto kernel :
       {AttentionKernel::kExact, AttentionKernel::kFused, AttentionKernel::kLayers}) {
    model->set_attention_kernel(kernel);
    EXPECT_LE(largest_difference(encoder_output(model, input), file.at("encoder_out")), kForward);
    EXPECT_LE(largest_difference(model->forward(input), file.at("logits")), kForward);
  }
}

TEST(ForwardGolden, OneTokenOnBothSides) {
  auto model = test::golden_model();
  const EvalScope evaluation(*model);
  const auto file = load_tensors(test::golden("forward/single_token.safetensors"));
  const ModelInput input = padded_input(file);
  EXPECT_LE(largest_difference(encoder_output(model, input), file.at("encoder_out")), kForward);
  EXPECT_LE(largest_difference(model->forward(input), file.at("logits")), kForward);
}

TEST(ForwardGolden, FeedForwardActivations) {
  const auto file = load_tensors(test::golden("forward/feedforward.safetensors"));
  auto config = test::released_config("forward/feedforward_config.json");
  NamedTensors parameters;
  for (const auto& [name, tensor] : file) {
    if (name.starts_with("params/")) {
      parameters[name.substr(7)] = tensor;
    }
  }
  int cases = 0;
  for (const auto& [activation, name] : kActivationNames.entries) {
    const std::string prefix(name);
    if (!file.contains(prefix + "/logits")) {
      continue;
    }
    ++cases;
    config.activation = activation;
    Needle model(config);
    assign_parameters(model, from_released(parameters, config, "feedforward"), "feedforward");
    const EvalScope evaluation(*model);
    const ModelInput input = padded_input(file);
    EXPECT_LE(largest_difference(encoder_output(model, input), file.at(prefix + "/encoder_out")),
              kForward)
        << prefix;
    EXPECT_LE(largest_difference(model->forward(input), file.at(prefix + "/logits")), kForward)
        << prefix;
  }
  EXPECT_GT(cases, 0);
}

TEST(ForwardGolden, Bfloat16ComputeAndParameters) {
  auto model = test::golden_model();
  const EvalScope evaluation(*model);
  const auto padded = load_tensors(test::golden("forward/padded.safetensors"));
  const auto file = load_tensors(test::golden("forward/padded_bf16.safetensors"));
  const auto rows = file.at("logits_bf16_compute").size(0);
  ModelInput input{.source = ids(padded, "source").narrow(0, 0, rows),
                   .decoder_in = ids(padded, "decoder_in").narrow(0, 0, rows)};
  model->set_compute_dtype(torch::kBFloat16);
  for (const auto kernel :
       {AttentionKernel::kExact, AttentionKernel::kFused, AttentionKernel::kLayers}) {
    model->set_attention_kernel(kernel);
    const auto logits = model->forward(input);
    EXPECT_EQ(logits.scalar_type(), torch::kFloat32);
    EXPECT_LE(largest_difference(logits, file.at("logits_bf16_compute")), kBfloat16);
    EXPECT_LE(largest_difference(logits, padded.at("logits").narrow(0, 0, rows)), kBfloat16);
    EXPECT_GT(largest_difference(logits, padded.at("logits").narrow(0, 0, rows)),
              kForward);  // it does round
  }
  model->set_attention_kernel(AttentionKernel::kExact);
  model->to(torch::kBFloat16);
  input.mask_decoder_padding = false;
  EXPECT_LE(largest_difference(model->forward(input), file.at("logits_causal_only_bf16_params")),
            kBfloat16);
}

TEST(QuantModelGolden, QuantisedKernels) {
  auto model = test::golden_model();
  const auto padded = load_tensors(test::golden("forward/padded.safetensors"));
  const auto file = load_tensors(test::golden("quant/model.safetensors"));
  int cases = 0;
  for (const auto& [mode, name] : kFakeQuantNames.entries) {
    const std::string prefix(name);
    if (!file.contains(prefix + "/logits")) {
      continue;
    }
    ++cases;
    model->set_fake_quant(mode);
    const auto rows = file.at(prefix + "/logits").size(0);
    const ModelInput input{.source = ids(padded, "source").narrow(0, 0, rows),
                           .decoder_in = ids(padded, "decoder_in").narrow(0, 0, rows)};
    for (const bool gradients : {true, false}) {  // the second way keeps the quantised weights
      const torch::AutoGradMode mode_of_gradients(gradients);
      EXPECT_LE(largest_difference(encoder_output(model, input), file.at(prefix + "/encoder_out")),
                kQuantised);
      EXPECT_LE(largest_difference(model->forward(input), file.at(prefix + "/logits")), kQuantised);
      EXPECT_LE(largest_difference(model->embed(ids(padded, "contrastive_tokens")),
                                   file.at(prefix + "/contrastive_embedding")),
                kQuantisedEmbedding);
    }
    NamedTensors quantised = named_parameters(model);
    for (const std::string& kernel : model->kernel_names()) {
      quantised[kernel] = fake_quantize(quantised[kernel], mode);
    }
    for (const auto& [path, tensor] : to_released(quantised, model->config())) {
      const auto expected = file.find(prefix + "/params/" + path);
      if (expected != file.end()) {
        const double largest = expected->second.abs().max().item<double>();
        EXPECT_LE(largest_difference(tensor, expected->second), 1e-6 * largest) << path;
      }
    }
  }
  EXPECT_GT(cases, 0);
}

TEST(NeedleTest, TheReleasedShapeHas26MillionParameters) {
  const ModelConfig config;
  const Needle model(config);
  std::int64_t count = 0;
  for (const auto& parameter : model->parameters()) {
    count += parameter.numel();
  }
  EXPECT_EQ(count, config.parameter_count());
  EXPECT_NEAR(static_cast<double>(count), 26.3e6, 0.05e6);
}

TEST(NeedleTest, ParameterCountFollowsTheConfig) {
  auto config = test::small_config();
  for (const bool no_feedforward : {true, false}) {
    config.no_feedforward = no_feedforward;
    const Needle model(config);
    std::int64_t count = 0;
    for (const auto& parameter : model->parameters()) {
      count += parameter.numel();
    }
    EXPECT_EQ(count, config.parameter_count());
  }
}

TEST(NeedleTest, KernelNamesAreTheDenseKernels) {
  auto config = test::small_config();
  config.no_feedforward = false;
  const Needle model(config);
  const auto names = model->kernel_names();
  // 4 projections an attention, 3 a feed-forward layer, 2 in the contrastive head.
  EXPECT_EQ(names.size(), 2u * (4 + 3) + 2u * (8 + 3) + 2u);
  for (const std::string& name : names) {
    EXPECT_TRUE(name.ends_with(".weight")) << name;
    EXPECT_NE(name, "embedding.weight");
  }
}

TEST(NeedleTest, DropoutActsInTrainingModeAlone) {
  auto model = test::random_model(test::small_config(), 18);
  const ModelInput input{.source = test::random_tokens(model->config(), 2, 6),
                         .decoder_in = test::random_tokens(model->config(), 2, 4)};
  const auto plain = model->forward(input).detach();
  model->set_dropout_rate(0.3);
  torch::manual_seed(1);
  const auto first = model->forward(input).detach();
  torch::manual_seed(1);
  EXPECT_TRUE(torch::equal(model->forward(input).detach(), first));  // torch's generator decides
  EXPECT_GT(largest_difference(first, plain), 1e-3);
  {
    const EvalScope evaluation(*model);
    EXPECT_FALSE(torch::GradMode::is_enabled());
    EXPECT_TRUE(torch::equal(model->forward(input), plain));
  }
  EXPECT_TRUE(model->is_training());
  EXPECT_TRUE(torch::GradMode::is_enabled());
  EXPECT_THROW(model->set_dropout_rate(1.0), Error);
}

TEST(NeedleTest, PackingIsInvisibleToTheExamples) {
  auto model = test::random_model(test::small_config(), 19);
  const EvalScope evaluation(*model);
  const auto a = test::random_tokens(model->config(), 1, 5);
  const auto b = test::random_tokens(model->config(), 1, 4);
  const auto decoder_a = test::random_tokens(model->config(), 1, 3);
  const auto decoder_b = test::random_tokens(model->config(), 1, 6);
  const auto segments = [](std::int64_t first, std::int64_t second) {
    return torch::cat({torch::full({1, first}, 1), torch::full({1, second}, 2),
                       torch::zeros({1, 1}, torch::kInt64)},
                      1);
  };
  const auto pad = torch::zeros({1, 1}, torch::kInt64);
  const auto packed = model->forward({.source = torch::cat({a, b, pad}, 1),
                                      .decoder_in = torch::cat({decoder_a, decoder_b, pad}, 1),
                                      .source_segments = segments(5, 4),
                                      .decoder_segments = segments(3, 6)});
  const auto alone_a = model->forward({.source = a, .decoder_in = decoder_a});
  const auto alone_b = model->forward({.source = b, .decoder_in = decoder_b});
  EXPECT_LT(largest_difference(packed.narrow(1, 0, 3), alone_a), 2e-5);
  EXPECT_LT(largest_difference(packed.narrow(1, 3, 6), alone_b), 2e-5);
}

TEST(NeedleTest, RefusesAnInvalidConfig) {
  auto config = test::small_config();
  config.num_heads = 5;
  EXPECT_THROW(Needle{config}, ConfigError);
}

}  // namespace
}  // namespace needle
