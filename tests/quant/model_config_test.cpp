#include "needle/quant/model_config.h"

#include <string>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/safetensors.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::string validation_error(const ModelConfig& config) {
  try {
    config.validate("here");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

// The golden checkpoint's own tensors are the count.
TEST(ModelConfigGolden, CountsTheParametersOfTheCheckpoint) {
  const Json json = read_json_file(test::golden("checkpoint/tiny_config.json"));
  ModelConfig config;
  const auto read = [&](const char* key, std::int64_t& field) {
    if (json.contains(key)) {
      field = json.at(key).get<std::int64_t>();
    }
  };
  read("vocab_size", config.vocab_size);
  read("d_model", config.d_model);
  read("num_heads", config.num_heads);
  read("num_kv_heads", config.num_kv_heads);
  read("num_encoder_layers", config.num_encoder_layers);
  read("num_decoder_layers", config.num_decoder_layers);
  read("contrastive_dim", config.contrastive_dim);
  read("d_ff", config.d_ff);
  config.no_feedforward = json.value("no_feedforward", true);
  std::int64_t count = 0;
  const SafetensorsFile file(test::golden("checkpoint/tiny_f32.safetensors"));
  for (const auto& [name, tensor] : file.tensors()) {
    count += tensor.element_count();
  }
  EXPECT_EQ(config.parameter_count(), count);
  config.no_feedforward = !config.no_feedforward;
  EXPECT_NE(config.parameter_count(), count);
}

TEST(ModelConfigTest, DefaultsAreTheReleasedModel) {
  const ModelConfig config;
  config.validate("default");
  // Specification, section 1: 26.3 million.
  EXPECT_NEAR(static_cast<double>(config.parameter_count()), 26.3e6, 0.05e6);
}

TEST(ModelConfigTest, ValidateNamesTheField) {
  EXPECT_EQ(validation_error({}), "");
  EXPECT_NE(
      validation_error({.num_heads = 7}).find("here: num_heads = 7 does not divide d_model = 512"),
      std::string::npos);
  EXPECT_NE(validation_error({.num_kv_heads = 3}).find("num_kv_heads = 3"), std::string::npos);
  EXPECT_NE(validation_error({.d_model = 12, .num_heads = 4}).find("must be even"),
            std::string::npos);
  EXPECT_NE(
      validation_error({.d_model = 10, .num_heads = 1, .num_kv_heads = 1}).find("multiple of 4"),
      std::string::npos);
  EXPECT_NE(validation_error({.vocab_size = 0}).find("vocab_size = 0"), std::string::npos);
  EXPECT_NE(validation_error({.num_encoder_layers = -1}).find("num_encoder_layers"),
            std::string::npos);
  EXPECT_NE(validation_error({.d_model = std::int64_t{1} << 60}).find("d_model"),
            std::string::npos);
  EXPECT_NE(validation_error({.rope_theta = 0.0}).find("rope_theta"), std::string::npos);
  EXPECT_NE(validation_error({.pad_token_id = 8192}).find("pad_token_id"), std::string::npos);
}

TEST(ModelConfigTest, GoesThroughJson) {
  const ModelConfig config{.vocab_size = 512, .d_model = 64, .activation = Activation::kGeglu};
  EXPECT_EQ(from_json<ModelConfig>(to_json(config), "test"), config);
  EXPECT_THROW(from_json<ModelConfig>(Json{{"d_modle", 64}}, "test"), ConfigError);
}

}  // namespace
}  // namespace needle
