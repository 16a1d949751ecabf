#include "needle/model/released_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/quant/released_params.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void expect_equal_models(const Needle& a, const Needle& b) {
  const auto of_b = named_parameters(b);
  for (const auto& [name, value] : named_parameters(a)) {
    EXPECT_TRUE(test::same_values(value, of_b.at(name))) << name;
  }
}

TEST(ReleasedCheckpointGolden, PickleAndSafetensorsHoldTheSameNumbers) {
  const auto single = test::golden_model();
  const auto half =
      load_released_safetensors(test::golden("checkpoint/tiny_f16.safetensors"), single->config());
  const auto pickled = load_released_checkpoint(test::golden("checkpoint/tiny.pkl"));
  EXPECT_EQ(pickled->config(), single->config());
  expect_equal_models(single, half);
  expect_equal_models(single, pickled);
  EXPECT_GT(single->embedding->weight.abs().max().item<float>(), 0.0f);
}

TEST(ReleasedCheckpointGolden, EveryPickleRoundTripsThroughOurWriter) {
  const test::TemporaryFolder folder;
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("checkpoint"))) {
    if (entry.path().extension() != ".pkl") {
      continue;
    }
    ++files;
    const auto model = load_released_checkpoint(entry.path());
    save_released_checkpoint(model, folder / "copy.pkl");
    const auto copy = load_released_checkpoint(folder / "copy.pkl");
    EXPECT_EQ(copy->config(), model->config());
    expect_equal_models(model, copy);
    const auto original = read_released_checkpoint(entry.path());
    const auto written = read_released_checkpoint(folder / "copy.pkl");
    ASSERT_EQ(written.params.size(), original.params.size());
    for (const auto& [path, array] : original.params) {
      EXPECT_EQ(written.params.at(path).bytes, array.bytes) << path;
    }
  }
  EXPECT_GT(files, 0);
}

TEST(ReleasedCheckpointTest, ArraysAreThoseOfThePublishedLayout) {
  auto config = test::small_config();
  for (const bool no_feedforward : {true, false}) {
    config.no_feedforward = no_feedforward;
    const auto shapes = released_shapes(config);
    const auto by_path = to_released(named_parameters(test::random_model(config, 20)), config);
    ASSERT_EQ(by_path.size(), shapes.size());
    for (const auto& [path, tensor] : by_path) {
      EXPECT_EQ(tensor.sizes().vec(), shapes.at(path)) << path;
    }
  }
}

TEST(ReleasedCheckpointTest, MappingThereAndBackIsExact) {
  auto config = test::small_config();
  config.no_feedforward = false;
  config.num_encoder_layers = 3;
  const auto model = test::random_model(config, 21);
  const auto by_name = named_parameters(model);
  const auto back = from_released(to_released(by_name, config), config, "here");
  ASSERT_EQ(back.size(), by_name.size());
  for (const auto& [name, value] : by_name) {
    EXPECT_TRUE(torch::equal(back.at(name), value)) << name;
  }
}

TEST(ReleasedCheckpointTest, RefusesArraysThatDoNotFit) {
  const auto config = test::small_config();
  const auto by_path = to_released(named_parameters(test::random_model(config, 22)), config);
  const auto error = [&](const NamedTensors& arrays) -> std::string {
    try {
      from_released(arrays, config, "here");
    } catch (const FormatError& refused) {
      return refused.what();
    }
    return "no FormatError";
  };
  auto arrays = by_path;
  arrays.erase("log_temp");
  EXPECT_THAT(error(arrays), AllOf(HasSubstr("here"), HasSubstr("'log_temp'")));
  arrays = by_path;
  arrays["decoder/extra"] = torch::zeros({2});
  EXPECT_THAT(error(arrays), HasSubstr("'decoder/extra'"));
  const std::string gates = "encoder/layers/EncoderBlock_0/attn_gate";
  arrays = by_path;
  arrays[gates] = torch::zeros({3});
  EXPECT_THAT(error(arrays), AllOf(HasSubstr(gates), HasSubstr("3 layers")));
  arrays[gates] = torch::zeros({});
  EXPECT_THAT(error(arrays), HasSubstr(gates));
  arrays = by_path;
  arrays["contrastive_proj/kernel"] = torch::zeros({6});
  EXPECT_THAT(error(arrays), HasSubstr("contrastive_proj/kernel"));
}

TEST(ReleasedCheckpointTest, ExportRefusesWhatFloat16CannotHold) {
  const test::TemporaryFolder folder;
  auto model = test::random_model(test::small_config(), 23);
  {
    const torch::NoGradGuard no_grad;
    model->embedding->weight[1][1] = -70000.0f;
  }
  EXPECT_THROW(save_released_checkpoint(model, folder / "needle.pkl"), FormatError);
  EXPECT_FALSE(std::filesystem::exists(folder / "needle.pkl"));
}

}  // namespace
}  // namespace needle
