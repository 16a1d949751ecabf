// The runtime against the reference's numbers, from weights files that lose nothing.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/safetensors.h"
#include "needle/decode/generate.h"
#include "needle/runtime/engine.h"

#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"

namespace needle::runtime {
namespace {

using test::golden;

// A tensor of the golden files, its last axis apart.
struct Table {
  explicit Table(const TensorView& view)
      : shape(view.shape),
        values(view.dtype == Dtype::kI32 ? std::vector<float>() : to_floats(view)) {}
  std::span<const float> row(std::int64_t index) const {
    const auto width = static_cast<std::size_t>(shape.back());
    return std::span(values).subspan(static_cast<std::size_t>(index) * width, width);
  }
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

std::vector<TokenId> token_row(const TensorView& view, std::int64_t row) {
  const std::vector<std::int32_t> all = to_ints(view);
  const auto width = view.shape.at(1);
  return {all.begin() + row * width, all.begin() + (row + 1) * width};
}

void expect_near(std::span<const float> got, std::span<const float> expected, float tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  float worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - expected[i]));
  }
  EXPECT_LE(worst, tolerance) << what;
}

// Rows of the batch against `prefix`encoder_out and logits. Logits that were made with target
// padding masked are compared up to the first padding: the engine masks causally, as generation.
void check_forward(const RuntimeEngine& engine, const SafetensorsFile& batch,
                   const SafetensorsFile& expected, const std::string& prefix,
                   const std::string& logits_name, bool padding_was_masked, float tolerance) {
  const TokenId pad = static_cast<TokenId>(engine.model().config.pad_token_id);
  const Table encoder_out(expected.at(prefix + "encoder_out"));
  const Table logits(expected.at(prefix + logits_name));
  const std::int64_t source_length = encoder_out.shape[1];
  const std::int64_t answer_length = logits.shape[1];
  for (std::int64_t row = 0; row < encoder_out.shape[0]; ++row) {
    const std::string what = prefix + logits_name + " row " + std::to_string(row);
    const auto source = token_row(batch.at("source"), row);
    const auto states = engine.encode(source);
    const auto width = static_cast<std::size_t>(encoder_out.shape[2]);
    for (std::int64_t t = 0; t < source_length; ++t) {
      expect_near(std::span(states).subspan(static_cast<std::size_t>(t) * width, width),
                  encoder_out.row(row * source_length + t), tolerance, what + " encoder");
    }
    const auto answer = token_row(batch.at("decoder_in"), row);
    const auto session = engine.start(source, answer_length);
    for (std::int64_t t = 0; t < answer_length; ++t) {
      const TokenId token = answer[static_cast<std::size_t>(t)];
      if (padding_was_masked && token == pad) {
        break;
      }
      expect_near(session->step(token), logits.row(row * answer_length + t), tolerance, what);
    }
  }
}

void check_embeddings(const RuntimeEngine& engine, const SafetensorsFile& batch,
                      const TensorView& expected, float tolerance) {
  const Table embeddings(expected);
  for (std::int64_t row = 0; row < embeddings.shape[0]; ++row) {
    expect_near(engine.embed(token_row(batch.at("contrastive_tokens"), row)), embeddings.row(row),
                tolerance, "embedding " + std::to_string(row));
  }
}

class RuntimeGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    try {
      kernels_ = &find_kernels(GetParam());
    } catch (const ConfigError&) {
      GTEST_SKIP() << "this CPU has no " << GetParam();
    }
  }
  RuntimeEngine tiny(std::optional<QuantBits> bits = {}) const {
    const ModelConfig config = test::golden_config(golden("checkpoint/tiny_config.json"));
    const auto arrays = test::stored_parameters(golden("checkpoint/tiny_f32.safetensors"));
    return RuntimeEngine(test::runtime_model(config, test::module_parameters(config, arrays, bits)),
                         {.kernels = kernels_});
  }
  const Kernels* kernels_ = nullptr;
};

TEST_P(RuntimeGolden, ForwardPass) {
  const RuntimeEngine engine = tiny();
  const SafetensorsFile padded(golden("forward/padded.safetensors"));
  check_forward(engine, padded, padded, "", "logits", true, 2e-5f);
  check_forward(engine, padded, padded, "", "logits_causal_only", false, 2e-5f);
  check_embeddings(engine, padded, padded.at("contrastive_embedding"), 1e-5f);
  const SafetensorsFile single(golden("forward/single_token.safetensors"));
  check_forward(engine, single, single, "", "logits", true, 2e-5f);
}

TEST_P(RuntimeGolden, QuantisedForwardPass) {
  const SafetensorsFile padded(golden("forward/padded.safetensors"));
  const SafetensorsFile expected(golden("quant/model.safetensors"));
  for (const auto& [prefix, bits] :
       {std::pair{"int4/", QuantBits::kInt4}, std::pair{"int8/", QuantBits::kInt8}}) {
    const RuntimeEngine engine = tiny(bits);
    check_forward(engine, padded, expected, prefix, "logits", true, 5e-5f);
    check_embeddings(engine, padded, expected.at(std::string(prefix) + "contrastive_embedding"),
                     2e-5f);
  }
}

TEST_P(RuntimeGolden, FeedForwardVariants) {
  ModelConfig config = test::golden_config(golden("forward/feedforward_config.json"));
  const SafetensorsFile file(golden("forward/feedforward.safetensors"));
  const auto arrays = test::stored_parameters(golden("forward/feedforward.safetensors"), "params/");
  int variants = 0;
  for (const auto& [activation, name] : kActivationNames.entries) {
    const std::string prefix = std::string(name) + "/";
    if (!file.contains(prefix + "logits")) {
      continue;
    }
    ++variants;
    config.activation = activation;
    const RuntimeEngine engine(test::runtime_model(config, test::module_parameters(config, arrays)),
                               {.kernels = kernels_});
    check_forward(engine, file, file, prefix, "logits", true, 2e-5f);
  }
  EXPECT_GT(variants, 0);
}

TEST_P(RuntimeGolden, GreedyTokens) {
  const Json cases = read_json_file(golden("generate/generate.json")).at("cases");
  std::map<std::string, std::unique_ptr<RuntimeEngine>> engines;
  int checked = 0;
  for (const Json& item : cases) {
    if (item.at("constrained").get<bool>()) {
      continue;  // covered by the tests of decode
    }
    const std::string model = item.at("model");  // "trained.pkl, int4 kernels"
    auto& engine = engines[model];
    if (!engine) {
      const auto golden_model =
          test::pickled_parameters(golden("checkpoint/" + model.substr(0, model.find(','))));
      const bool int4 = model.find("int4") != std::string::npos;
      engine = std::make_unique<RuntimeEngine>(
          test::runtime_model(
              golden_model.config,
              test::module_parameters(golden_model.config, golden_model.arrays,
                                      int4 ? std::optional(QuantBits::kInt4) : std::nullopt)),
          EngineOptions{.kernels = kernels_});
    }
    const std::int64_t max_gen_len = item.at("max_gen_len");
    const auto session =
        engine->start(item.at("encoder_ids").get<std::vector<TokenId>>(), max_gen_len);
    const GeneratedTokens generated = generate_tokens(*session, {.max_gen_len = max_gen_len});
    EXPECT_EQ(generated.ids, item.at("generated_ids").get<std::vector<TokenId>>())
        << model << ": " << item.at("query");
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

INSTANTIATE_TEST_SUITE_P(Kernels, RuntimeGolden,
                         ::testing::Values("scalar", "generic", "avx2", "avx512"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace needle::runtime
