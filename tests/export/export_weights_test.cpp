#include "needle/export/export_weights.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/model/checkpoint.h"
#include "needle/model/fake_quant.h"
#include "needle/model/init.h"
#include "needle/model/model_engine.h"
#include "needle/quant/weights_file.h"
#include "needle/runtime/engine.h"
#include "needle/text/tokenizer.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

Tokenizer golden_tokenizer() {
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("tokenizer"))) {
    if (entry.path().extension() == ".model") {
      return Tokenizer::load(entry.path());
    }
  }
  throw Error("the golden folder has no tokenizer");
}

// A model in which nothing is zero.
Needle random_model(ModelConfig config) {
  torch::manual_seed(5);
  Needle model(config);
  NamedTensors values;
  for (const auto& [name, parameter] : named_parameters(model)) {
    values.emplace(name, 0.2 * torch::randn_like(parameter));
  }
  assign_parameters(model, values, "random");
  return model;
}

class ExportTest : public ::testing::Test {
 protected:
  ExportTest() : tokenizer_(golden_tokenizer()) {
    config_ = {.vocab_size = tokenizer_.vocab_size(),
               .d_model = 32,
               .num_heads = 4,
               .num_kv_heads = 2,
               .num_encoder_layers = 2,
               .num_decoder_layers = 2,
               .d_ff = 40,
               .max_seq_len = 64,
               .contrastive_dim = 12};
  }
  VerifyReport export_model(const Needle& model, const ExportSettings& settings,
                            const VerifyOptions& options = {}) const {
    return export_verified(model, tokenizer_, prompt_, {{"source", "a test"}}, settings, options,
                           path_);
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.needle";
  Tokenizer tokenizer_;
  ModelConfig config_;
  PromptConfig prompt_{.max_enc_len = 77};
};

TEST_F(ExportTest, EveryEncodingAndVariantPassesItsOwnCheck) {
  for (const WeightEncoding kernels :
       {WeightEncoding::kInt4, WeightEncoding::kInt8, WeightEncoding::kF32}) {
    for (const bool feed_forward : {false, true}) {
      config_.no_feedforward = !feed_forward;
      const bool lossless = kernels == WeightEncoding::kF32;
      const VerifyReport report = export_model(
          random_model(config_),
          {.kernels = kernels, .embedding = lossless ? kernels : WeightEncoding::kInt8});
      EXPECT_TRUE(report.passed());
      EXPECT_EQ(report.tokens, 32 * report.prompts);
      EXPECT_LT(report.logit_difference, 2e-5);  // ten times below the tolerance
      EXPECT_EQ(report.different_tokens, 0);
      EXPECT_EQ(report.quantization_difference < 1e-5, lossless);
      EXPECT_EQ(report.file_bytes, static_cast<std::int64_t>(std::filesystem::file_size(path_)));
      EXPECT_THAT(report.text(), HasSubstr("different greedy tokens         0"));
    }
  }
}

TEST_F(ExportTest, FileHoldsWhatServingNeeds) {
  export_model(random_model(config_), {});
  const WeightsFile file(path_);
  EXPECT_EQ(file.model_config(), config_);
  EXPECT_EQ(file.tokenizer_model(), tokenizer_.model_bytes());
  EXPECT_TRUE(std::ranges::equal(file.vocabulary(), tokenizer_.tables()));
  EXPECT_EQ(from_json<PromptConfig>(file.config().at("prompt"), "prompt").max_enc_len, 77);
  EXPECT_EQ(file.config().at("quantization").at("embedding"), "int4");
  EXPECT_EQ(file.config().at("provenance").at("source"), "a test");
  EXPECT_EQ(file.matrix("encoder.layers.0.self_attn.attention.q_proj.weight").encoding,
            WeightEncoding::kInt4);
}

// Training sees code * scale of group_quant; the file rounds the scales, within half of 1/255 of
// the row's largest scale, and keeps the codes.
TEST_F(ExportTest, DeployedKernelsAreThoseOfFakeQuantisation) {
  const Needle model = random_model(config_);
  export_model(model, {});
  const Needle deployed = deployed_model(path_);
  const NamedTensors original = named_parameters(model);
  for (const auto& [name, value] : named_parameters(deployed)) {
    const torch::Tensor& weight = original.find(name)->second;
    if (weight.dim() != 2) {
      EXPECT_TRUE(torch::equal(value, weight)) << name;
      continue;
    }
    const auto trained = fake_quantize(weight, FakeQuant::kInt4);
    const auto largest_step = weight.abs().amax(1, true) / 7 / 255 * (0.5 * (1 + 1.0 / 128));
    const auto difference = (value - trained).abs();
    EXPECT_TRUE((difference <= 7.01 * largest_step).all().item<bool>()) << name;
    EXPECT_GT(difference.max().item<float>(), 0.0f) << name;
  }
}

TEST_F(ExportTest, FailedCheckLeavesWhatWasThere) {
  write_file_atomic(path_, "the file before");
  EXPECT_THROW(export_model(random_model(config_), {}, {.tolerance = 0}), Error);
  EXPECT_EQ(read_file(path_), "the file before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()),
                          std::filesystem::directory_iterator()),
            1);
}

TEST_F(ExportTest, BrokenModelIsNotExported) {
  const Needle model = random_model(config_);
  {
    const torch::NoGradGuard no_grad;
    model->embedding->weight[3][4] = NAN;
  }
  try {
    export_model(model, {});
    FAIL() << "exported a weight that is not a number";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("embedding.weight"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  config_.vocab_size += 1;
  EXPECT_THROW(export_model(random_model(config_), {}), ConfigError);
}

TEST_F(ExportTest, CheckNoticesAnotherComputation) {
  const Needle model = random_model(config_);
  VerifyReport report = export_model(model, {});
  EXPECT_NO_THROW(check_verified(report, "x"));
  report.different_tokens = 1;
  EXPECT_THROW(check_verified(report, "x"), Error);
  report.different_tokens = 0;
  report.logit_difference = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(check_verified(report, "x"), Error);
}

TEST_F(ExportTest, BothEnginesRefuseTheSameTokens) {
  const Needle model = random_model(config_);
  export_model(model, {});
  const ModelEngine torch_engine(model);
  const runtime::RuntimeEngine runtime_engine(
      runtime::Model::load(std::make_shared<const WeightsFile>(path_)));
  const auto vocab = static_cast<TokenId>(config_.vocab_size);
  for (const Engine* engine :
       {static_cast<const Engine*>(&torch_engine), static_cast<const Engine*>(&runtime_engine)}) {
    EXPECT_EQ(engine->vocab_size(), vocab);
    EXPECT_THROW(engine->start(std::vector<TokenId>{}, 3), Error);
    EXPECT_THROW(engine->start(std::vector<TokenId>{vocab}, 3), Error);
    EXPECT_THROW(engine->embed(std::vector<TokenId>{-1}), Error);
    const auto session = engine->start(std::vector<TokenId>{7}, 1);
    EXPECT_THROW(session->step(vocab), Error);
    EXPECT_NO_THROW(session->step(0));
    EXPECT_THROW(session->step(0), Error);
    EXPECT_EQ(session->position(), 1);
  }
}

}  // namespace
}  // namespace needle
