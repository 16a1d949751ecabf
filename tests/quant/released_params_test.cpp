#include "needle/quant/released_params.h"

#include <algorithm>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/safetensors.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using test::golden;
using test::TemporaryFolder;

// A file that the hostile pickles would create in the working directory of a reader that runs them.
constexpr const char* kTrace = "pickle_was_executed";

// Runs in a folder of its own until the end of the scope.
class WorkingFolder {
 public:
  WorkingFolder() : before_(std::filesystem::current_path()) {
    std::filesystem::current_path(folder_.path());
  }
  ~WorkingFolder() { std::filesystem::current_path(before_); }
  WorkingFolder(const WorkingFolder&) = delete;
  WorkingFolder& operator=(const WorkingFolder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return folder_ / name; }

 private:
  TemporaryFolder folder_;
  std::filesystem::path before_;
};

// float64 arrays keep every float16 and float32 value; what came from float16 fits float32.
std::vector<float> values_of(const PickleArray& array) {
  if (array.dtype != Dtype::kF64) {
    return to_floats(array.view());
  }
  std::vector<float> values;
  for (std::size_t i = 0; i < array.bytes.size(); i += sizeof(double)) {
    double value = 0.0;
    std::copy_n(array.bytes.data() + i, sizeof(double), reinterpret_cast<char*>(&value));
    values.push_back(static_cast<float>(value));
  }
  return values;
}

// "" if the arrays are those of the file, else the first difference.
std::string difference(const ReleasedParams& params, const SafetensorsFile& expected) {
  if (params.size() != expected.tensors().size()) {
    return std::to_string(params.size()) + " arrays";
  }
  for (const auto& [name, tensor] : expected.tensors()) {
    const auto found = params.find(name);
    if (found == params.end()) {
      return name + " is missing";
    }
    if (found->second.shape != tensor.shape) {
      return name + " has another shape";
    }
    if (values_of(found->second) != to_floats(tensor)) {
      return name + " has other values";
    }
  }
  return "";
}

// Field by field as the file has it; the file may leave out what the pickle's defaults say.
void expect_config(const ReleasedCheckpoint& checkpoint, const Json& expected) {
  Json got = {{"dtype", checkpoint.dtype},
              {"dropout_rate", checkpoint.dropout_rate},
              {"num_memory_slots", checkpoint.num_memory_slots}};
  ModelConfig::visit_fields(
      checkpoint.config, [&got](std::string_view name, const auto& field, std::string_view) {
        if constexpr (std::is_same_v<std::decay_t<decltype(field)>, Activation>) {
          got[std::string(name)] = std::string(kActivationNames.name(field));
        } else {
          got[std::string(name)] = field;
        }
      });
  for (const auto& [name, value] : expected.items()) {
    ASSERT_TRUE(got.contains(name)) << name;
    EXPECT_EQ(got[name], value) << name;
  }
}

std::size_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

TEST(PicklesGoldenTest, EveryFileGetsItsVerdict) {
  const Json manifest = read_json_file(golden("pickles/manifest.json"));
  const SafetensorsFile expected(golden("pickles/expected.safetensors"));
  const Json expected_config = read_json_file(golden("pickles/expected_config.json"));
  const WorkingFolder folder;
  std::size_t loaded = 0;
  std::size_t refused = 0;
  for (const Json& entry : manifest["files"]) {
    const std::string name = entry["file"];
    const std::string verdict = entry["verdict"];
    SCOPED_TRACE(name + ": " + entry["why"].get<std::string>());
    const std::size_t memory_before = peak_memory_bytes();
    try {
      const ReleasedCheckpoint checkpoint = read_released_checkpoint(golden("pickles/" + name));
      ++loaded;
      EXPECT_NE(verdict, "refuse") << "was accepted";
      EXPECT_EQ(difference(checkpoint.params, expected), "");
      Json config = expected_config;
      const PickleValue file = read_pickle_file(golden("pickles/" + name));
      for (const auto& [field, value] : manifest["defaults_for_missing_config_fields"].items()) {
        if (file.find("config")->find(field) == nullptr) {
          config[field] = value;
        }
      }
      expect_config(checkpoint, config);
    } catch (const Error& refusal) {
      ++refused;
      const std::string error = refusal.what();
      EXPECT_NE(verdict, "load") << error;
      EXPECT_NE(error.find(name), std::string::npos) << error;
      EXPECT_GT(error.size(), name.size() + 10) << "no reason: " << error;
    }
    EXPECT_LT(peak_memory_bytes() - memory_before, std::size_t{64} << 20);
    EXPECT_FALSE(std::filesystem::exists(folder / kTrace));
  }
  EXPECT_GT(loaded, 0u);
  EXPECT_GT(refused, 0u);
}

TEST(PicklesGoldenTest, ReadsThePretrainStep) {
  // The manifest says the number in words; that a step is there, and another than in a neighbour,
  // shows it was read.
  std::set<std::int64_t> steps;
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden("pickles"))) {
    if (entry.path().filename().string().starts_with("ok_pretrain_step")) {
      ++files;
      const auto checkpoint = read_released_checkpoint(entry.path());
      ASSERT_TRUE(checkpoint.pretrain_step.has_value()) << entry.path();
      steps.insert(*checkpoint.pretrain_step);
    }
  }
  EXPECT_EQ(steps.size(), files);
}

// Every checkpoint/NAME.pkl with a NAME_f16 or NAME_f32 file beside it holds the same numbers.
TEST(CheckpointGoldenTest, PickleEqualsSafetensors) {
  std::size_t compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden("checkpoint"))) {
    if (entry.path().extension() != ".pkl") {
      continue;
    }
    const ReleasedCheckpoint checkpoint = read_released_checkpoint(entry.path());
    const std::string stem = entry.path().stem().string();
    for (const char* suffix : {"_f16.safetensors", "_f32.safetensors"}) {
      const auto twin = golden("checkpoint/" + stem + suffix);
      if (std::filesystem::exists(twin)) {
        ++compared;
        EXPECT_EQ(difference(checkpoint.params, SafetensorsFile(twin)), "") << twin;
      }
    }
    const auto config = golden("checkpoint/" + stem + "_config.json");
    if (std::filesystem::exists(config)) {
      expect_config(checkpoint, read_json_file(config));
    }
  }
  EXPECT_GT(compared, 0u);
}

// Whatever a file holds, writing and reading it again changes nothing.
TEST(CheckpointGoldenTest, SurvivesWritingAndReading) {
  const TemporaryFolder folder;
  for (const auto& entry : std::filesystem::directory_iterator(golden("checkpoint"))) {
    if (entry.path().extension() != ".pkl") {
      continue;
    }
    const ReleasedCheckpoint before = read_released_checkpoint(entry.path());
    write_released_checkpoint(folder / "again.pkl", before);
    const ReleasedCheckpoint after = read_released_checkpoint(folder / "again.pkl");
    EXPECT_EQ(after.config, before.config);
    ASSERT_EQ(after.params.size(), before.params.size());
    for (const auto& [name, array] : before.params) {
      EXPECT_EQ(after.params.at(name).bytes, array.bytes) << name;
      EXPECT_EQ(after.params.at(name).shape, array.shape) << name;
    }
  }
}

ReleasedCheckpoint small_checkpoint(bool no_feedforward) {
  ReleasedCheckpoint checkpoint;
  checkpoint.config = released_config_defaults();
  checkpoint.config.vocab_size = 11;
  checkpoint.config.d_model = 8;
  checkpoint.config.num_encoder_layers = 3;
  checkpoint.config.d_ff = 6;
  checkpoint.config.contrastive_dim = 5;
  checkpoint.config.activation = Activation::kGeglu;
  checkpoint.config.no_feedforward = no_feedforward;
  std::uint16_t next = 0;
  for (const auto& [name, shape] : released_shapes(checkpoint.config)) {
    PickleArray array{.dtype = Dtype::kF16, .shape = shape, .bytes = {}};
    std::int64_t count = 1;
    for (const std::int64_t size : shape) {
      count *= size;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      array.bytes += static_cast<char>(next & 0xff);
      array.bytes += static_cast<char>(next >> 8 & 0x3f);
      ++next;
    }
    checkpoint.params.emplace(name, std::move(array));
  }
  return checkpoint;
}

TEST(ReleasedParamsTest, RoundTripsWithAndWithoutFeedForward) {
  const TemporaryFolder folder;
  for (const bool no_feedforward : {true, false}) {
    ReleasedCheckpoint checkpoint = small_checkpoint(no_feedforward);
    checkpoint.pretrain_step = (std::int64_t{1} << 40) + 3;
    checkpoint.dtype = "float32";
    checkpoint.dropout_rate = 0.25;
    checkpoint.num_memory_slots = 7;
    write_released_checkpoint(folder / "model.pkl", checkpoint);
    const ReleasedCheckpoint read = read_released_checkpoint(folder / "model.pkl");
    EXPECT_EQ(read.config, checkpoint.config);
    EXPECT_EQ(read.pretrain_step, checkpoint.pretrain_step);
    EXPECT_EQ(read.dtype, "float32");
    EXPECT_EQ(read.dropout_rate, 0.25);
    EXPECT_EQ(read.num_memory_slots, 7);
    ASSERT_EQ(read.params.size(), checkpoint.params.size());
    for (const auto& [name, array] : checkpoint.params) {
      EXPECT_EQ(read.params.at(name).bytes, array.bytes) << name;
    }
  }
}

TEST(ReleasedParamsTest, CountsTheParametersOfTheReleasedModel) {
  const ModelConfig config;
  std::int64_t total = 0;
  for (const auto& [name, shape] : released_shapes(config)) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) {
      count *= size;
    }
    total += count;
  }
  EXPECT_EQ(total, config.parameter_count());
}

TEST(ReleasedParamsTest, RefusesToWriteWhatTheConfigDoesNotDescribe) {
  const TemporaryFolder folder;
  ReleasedCheckpoint checkpoint = small_checkpoint(true);
  checkpoint.params.erase("log_temp");
  EXPECT_THROW(write_released_checkpoint(folder / "model.pkl", checkpoint), Error);
  checkpoint = small_checkpoint(true);
  checkpoint.config.d_model = 16;
  EXPECT_THROW(write_released_checkpoint(folder / "model.pkl", checkpoint), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / "model.pkl"));
}

TEST(ReleasedParamsTest, NamesTheArrayThatDoesNotFit) {
  const TemporaryFolder folder;
  PickleArray scalar{.dtype = Dtype::kF16, .shape = {}, .bytes = std::string(2, '\0')};
  const PickleValue file{PickleValue::Dict{{"params", {PickleValue::Dict{{"log_temp", {scalar}}}}},
                                           {"config", {PickleValue::Dict{}}}}};
  write_file_atomic(folder / "model.pkl", write_pickle(file));
  try {
    read_released_checkpoint(folder / "model.pkl");
    FAIL() << "was accepted";
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.pkl: params: contrastive_hidden/bias"));
  }
}

}  // namespace
}  // namespace needle
