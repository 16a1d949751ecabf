#include "needle/quant/needle_rs_file.h"

#include <cmath>
#include <cstring>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/random.h"
#include "needle/core/safetensors.h"
#include "needle/quant/group_quant.h"
#include "needle/quant/weights_file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

const ModelConfig kConfig{.vocab_size = 12,
                          .d_model = 40,  // a ragged last group
                          .num_heads = 4,
                          .num_kv_heads = 2,
                          .num_encoder_layers = 2,
                          .num_decoder_layers = 1,
                          .d_ff = 24,
                          .activation = Activation::kGeglu,
                          .no_feedforward = false,
                          .max_seq_len = 77,
                          .contrastive_dim = 6};

NeedleRsModel random_model(const ModelConfig& config = kConfig) {
  NeedleRsModel model{.config = config,
                      .max_enc_len = config.max_seq_len,
                      .max_dec_len = 33,
                      .has_contrastive_head = true};
  Random random(5);
  for (const TensorSpec& spec : expected_tensors(config)) {
    std::size_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= static_cast<std::size_t>(side);
    }
    std::vector<float> values(count);
    for (float& value : values) {
      value = static_cast<float>(random.normal());
    }
    model.parameters.emplace(spec.name, std::move(values));
  }
  for (std::int64_t id = 0; id < config.vocab_size; ++id) {
    model.vocabulary.emplace_back("piece " + std::to_string(id), -static_cast<float>(id) / 4);
  }
  return model;
}

class NeedleRsFileTest : public ::testing::Test {
 protected:
  NeedleRsModel through_a_file(const NeedleRsModel& model) {
    write_needle_rs(model, weights_, vocabulary_);
    return read_needle_rs(weights_, vocabulary_);
  }
  std::string message_of_reading() {
    try {
      read_needle_rs(weights_, vocabulary_);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "";
  }

  test::TemporaryFolder folder_;
  std::filesystem::path weights_ = folder_ / "needle.safetensors";
  std::filesystem::path vocabulary_ = folder_ / "vocab.txt";
};

TEST_F(NeedleRsFileTest, KeepsEverythingButWhatTheRuleRounds) {
  const NeedleRsModel model = random_model();
  const NeedleRsModel read = through_a_file(model);
  EXPECT_EQ(read.config, model.config);
  EXPECT_EQ(read.max_enc_len, 77);
  EXPECT_EQ(read.max_dec_len, 33);
  EXPECT_EQ(read.vocabulary, model.vocabulary);
  ASSERT_EQ(read.parameters.size(), model.parameters.size());
  for (const TensorSpec& spec : expected_tensors(kConfig)) {
    std::vector<float> expected = model.parameters.at(spec.name);
    if (spec.name == "embedding.weight") {
      for (float& value : expected) {
        value = bfloat16_to_float(float_to_bfloat16(value));
      }
    } else if (spec.name == "log_temp") {
      expected = {0.0f};
    } else if (spec.is_matrix() && !spec.name.starts_with("contrastive")) {
      // [out, in] here, [in, out] in the rule.
      const std::int64_t out = spec.shape[0];
      const std::int64_t in = spec.shape[1];
      std::vector<float> turned(expected.size());
      for (std::int64_t i = 0; i < out * in; ++i) {
        turned[static_cast<std::size_t>(i % in * out + i / in)] =
            expected[static_cast<std::size_t>(i)];
      }
      const std::vector<float> rounded =
          dequantize(quantize_groups(turned, in, out, QuantBits::kInt4));
      for (std::int64_t i = 0; i < out * in; ++i) {
        expected[static_cast<std::size_t>(i)] =
            rounded[static_cast<std::size_t>(i % in * out + i / in)];
      }
    }
    EXPECT_EQ(read.parameters.at(spec.name), expected) << spec.name;
  }
  // What was rounded once stays.
  const NeedleRsModel again = through_a_file(read);
  EXPECT_EQ(again.parameters.at("embedding.weight"), read.parameters.at("embedding.weight"));
  const auto& name = "decoder.layers.0.cross_attn.attention.k_proj.weight";
  for (std::size_t i = 0; i < read.parameters.at(name).size(); ++i) {
    EXPECT_NEAR(again.parameters.at(name)[i], read.parameters.at(name)[i], 1e-6);
  }
}

TEST_F(NeedleRsFileTest, LiesAsTheLayoutSays) {
  NeedleRsModel model = random_model();
  auto& kernel = model.parameters.at("encoder.layers.1.self_attn.attention.k_proj.weight");
  ASSERT_EQ(kernel.size(), 20u * 40u);  // [out 20, in 40]
  std::ranges::fill(kernel, 0.0f);
  kernel[3 * 40 + 4] = 7.0f;    // row 4 of output 3: low half of pair 2
  kernel[3 * 40 + 5] = -2.0f;   // row 5: high half, two's complement
  kernel[3 * 40 + 33] = -3.5f;  // group 1, whose scale is 0.5
  write_needle_rs(model, weights_, vocabulary_);
  const SafetensorsFile file(weights_);
  const TensorView& packed = file.at("encoder.1.self_attn.wk");
  EXPECT_EQ(packed.shape, (std::vector<std::int64_t>{32, 20}));
  EXPECT_EQ(std::to_integer<int>(packed.bytes[2 * 20 + 3]), 0xE7);
  EXPECT_EQ(std::to_integer<int>(packed.bytes[16 * 20 + 3]), 0x90);
  const std::vector<float> scales = to_floats(file.at("encoder.1.self_attn.wk.scale"));
  EXPECT_EQ(file.at("encoder.1.self_attn.wk.scale").shape, (std::vector<std::int64_t>{2, 20}));
  EXPECT_EQ(scales[3], 1.0f);
  EXPECT_EQ(scales[20 + 3], 0.5f);
  EXPECT_EQ(file.at("embedding").dtype, Dtype::kBF16);
  EXPECT_EQ(file.at("decoder.0.cross_attn_gate").shape, (std::vector<std::int64_t>{1}));
  EXPECT_EQ(file.at("contrastive_proj_kernel").shape, (std::vector<std::int64_t>{10, 6}));
  EXPECT_EQ(file.metadata().at("ffn_dim"), "24");
  EXPECT_EQ(file.metadata().at("no_feedforward"), "False");
  EXPECT_THAT(read_file(weights_), HasSubstr(R"("dtype":"I4")"));
  EXPECT_TRUE(read_file(vocabulary_).starts_with("piece 0\t0\npiece 1\t-0.25\n"))
      << read_file(vocabulary_);
}

TEST_F(NeedleRsFileTest, OlderFilesLackHeadAndScores) {
  ModelConfig config = kConfig;
  config.contrastive_dim = 128;  // what an absent head is taken for
  NeedleRsModel model = random_model(config);
  model.has_contrastive_head = false;
  write_needle_rs(model, weights_, vocabulary_);
  std::string lines;
  for (int i = 0; i < 12; ++i) {
    lines += "p" + std::to_string(i) + (i < 11 ? "\r\n" : "");
  }
  write_file_atomic(vocabulary_, lines);
  const NeedleRsModel read = read_needle_rs(weights_, vocabulary_);
  EXPECT_FALSE(read.has_contrastive_head);
  EXPECT_EQ(read.parameters.at("contrastive_head.proj.weight"), std::vector<float>(1280, 0.0f));
  EXPECT_EQ(read.vocabulary[11], (std::pair<std::string, float>("p11", -11.0f)));
}

TEST_F(NeedleRsFileTest, DamageIsNamed) {
  const NeedleRsModel model = random_model();
  write_needle_rs(model, weights_, vocabulary_);
  const std::string whole = read_file(weights_);
  const auto with = [&](std::string_view from, std::string_view to) {
    std::string text = whole;
    text.replace(text.find(from), from.size(), to);
    write_file_atomic(weights_, text);
  };
  for (std::size_t size = 0; size < whole.size(); size += 997) {
    write_file_atomic(weights_, whole.substr(0, size));
    EXPECT_NE(message_of_reading(), "") << size;
  }
  with(R"("d_model":"40")", R"("d_model":"44")");
  EXPECT_NE(message_of_reading(), "");
  with(R"("d_model":"40")", R"("d_model":"4x")");
  EXPECT_THAT(message_of_reading(), HasSubstr("__metadata__.d_model: expected a number, got 4x"));
  with(R"("num_heads":"4")", R"("num_heads":"0")");
  EXPECT_NE(message_of_reading(), "");
  with("geglu", "relu6");
  EXPECT_THAT(message_of_reading(), HasSubstr("activation"));
  with("decoder.0.self_attn.wo.scale", "decoder.0.self_attn.wo.scalf");
  EXPECT_THAT(message_of_reading(), HasSubstr("decoder.0.self_attn.wo"));
  write_file_atomic(weights_, whole);
  EXPECT_EQ(message_of_reading(), "");
  write_file_atomic(vocabulary_, "a\t0\nb\tx\n");
  EXPECT_THAT(message_of_reading(), HasSubstr("vocab.txt:2"));
  write_file_atomic(vocabulary_, "a\t0\n");
  EXPECT_THAT(message_of_reading(), HasSubstr("1 pieces, the weights' vocabulary has 12"));
}

TEST_F(NeedleRsFileTest, RefusesWhatTheFormatCannotHold) {
  NeedleRsModel model = random_model();
  model.vocabulary[4].first = "a\tb";
  EXPECT_THROW(write_needle_rs(model, weights_, vocabulary_), Error);
  EXPECT_FALSE(std::filesystem::exists(weights_));
  model = random_model();
  model.parameters.erase("encoder.final_norm.scale");
  EXPECT_THROW(write_needle_rs(model, weights_, vocabulary_), Error);
  model = random_model();
  model.vocabulary.pop_back();
  EXPECT_THROW(write_needle_rs(model, weights_, vocabulary_), Error);
}

}  // namespace
}  // namespace needle
