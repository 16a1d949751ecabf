#include "needle/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/model/model_fixtures.h"

namespace needle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <typename Function>
std::string format_error(Function function) {
  try {
    function();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no FormatError";
}

TEST(CheckpointTest, RoundTripsEveryParameterExactly) {
  const test::TemporaryFolder folder;
  auto config = test::small_config();
  config.no_feedforward = false;
  const auto model = test::random_model(config, 14);
  save_model_parameters(model, folder / "model.safetensors", {{"step", "7"}});
  Needle other(config);
  load_model_parameters(other, folder / "model.safetensors");
  for (const auto& [name, value] : named_parameters(model)) {
    EXPECT_TRUE(test::same_values(value, named_parameters(other)[name])) << name;
  }
  const SafetensorsFile file(folder / "model.safetensors");
  EXPECT_EQ(file.metadata().at("step"), "7");
  EXPECT_EQ(file.at("log_temp").shape.size(), 0u);
  EXPECT_EQ(file.at("encoder.layers.1.ffn.feed_forward.down_proj.weight").shape,
            (std::vector<std::int64_t>{config.d_model, config.d_ff}));
}

TEST(CheckpointTest, Float16RoundsAndRefusesWhatDoesNotFit) {
  const test::TemporaryFolder folder;
  auto model = test::random_model(test::small_config(), 15);
  save_model_parameters(model, folder / "half.safetensors", {}, StoredFloats::kFloat16);
  Needle other(test::small_config());
  load_model_parameters(other, folder / "half.safetensors");
  for (const auto& [name, value] : named_parameters(model)) {
    EXPECT_TRUE(
        torch::equal(named_parameters(other)[name], value.to(torch::kFloat16).to(torch::kFloat32)))
        << name;
  }
  {
    const torch::NoGradGuard no_grad;
    model->embedding->weight[0][0] = 1e5f;
  }
  EXPECT_THAT(format_error([&] {
                save_model_parameters(model, folder / "big.safetensors", {},
                                      StoredFloats::kFloat16);
              }),
              AllOf(HasSubstr("embedding.weight"), HasSubstr("float16")));
  EXPECT_FALSE(std::filesystem::exists(folder / "big.safetensors"));
}

TEST(CheckpointTest, NamesTheTensorThatIsMissingUnknownOrOfAnotherShape) {
  const auto source = test::random_model(test::small_config(), 16);
  Needle model(test::small_config());
  auto values = named_parameters(source);
  values.erase("encoder.final_norm.scale");
  EXPECT_THAT(format_error([&] { assign_parameters(model, values, "here"); }),
              AllOf(HasSubstr("here"), HasSubstr("'encoder.final_norm.scale'"), HasSubstr("[24]"),
                    HasSubstr("missing")));
  values = named_parameters(source);
  values["extra"] = torch::zeros({3});
  EXPECT_THAT(format_error([&] { assign_parameters(model, values, "here"); }),
              HasSubstr("'extra' [3]"));
  values = named_parameters(source);
  values["embedding.weight"] = torch::zeros({49, 24});
  EXPECT_THAT(format_error([&] { assign_parameters(model, values, "here"); }),
              AllOf(HasSubstr("'embedding.weight'"), HasSubstr("[49, 24]"), HasSubstr("[50, 24]")));
  values["embedding.weight"] = torch::zeros({50, 24}, torch::kInt64);
  EXPECT_THAT(format_error([&] { assign_parameters(model, values, "here"); }),
              HasSubstr("floating-point"));
  for (const auto& parameter : model->parameters()) {
    EXPECT_EQ(parameter.abs().sum().item<float>(), 0.0f);  // nothing was half loaded
  }
}

TEST(CheckpointTest, RefusesTruncatedFiles) {
  const test::TemporaryFolder folder;
  const auto model = test::random_model(test::small_config(), 17);
  save_model_parameters(model, folder / "model.safetensors");
  const std::string bytes = read_file(folder / "model.safetensors");
  Needle other(test::small_config());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
    write_file_atomic(folder / "cut.safetensors", std::string_view(bytes).substr(0, size));
    EXPECT_THROW(load_model_parameters(other, folder / "cut.safetensors"), FormatError) << size;
  }
}

TEST(TensorViewTest, CarriesEveryDtypeThroughAFile) {
  const test::TemporaryFolder folder;
  NamedTensors tensors;
  for (const auto& [dtype, name] : kDtypeNames.entries) {
    tensors[std::string(name)] = torch::randint(0, 2, {2, 3}).to(to_scalar_type(dtype));
  }
  tensors["empty"] = torch::zeros({0, 4});
  tensors["transposed"] = torch::randn({3, 5}).t();
  save_tensors(folder / "all.safetensors", tensors, {{"key", "value"}});
  const auto loaded = load_tensors(folder / "all.safetensors");
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(test::same_values(loaded.at(name), tensor)) << name;
  }
  EXPECT_THROW(to_dtype(torch::kComplexFloat), Error);
}

}  // namespace
}  // namespace needle
