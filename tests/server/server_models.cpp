#include "tests/server/server_models.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "needle/core/file.h"
#include "needle/core/random.h"
#include "needle/quant/weights_file.h"

#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"

namespace needle::test {
namespace {

std::string golden_tokenizer() {
  for (const auto& entry : std::filesystem::directory_iterator(golden("tokenizer"))) {
    if (entry.path().extension() == ".model") {
      return read_file(entry.path());
    }
  }
  return "";
}

// `config`: all but what belongs to the vocabulary.
bool write_random_model(const std::filesystem::path& path, ModelConfig config,
                        WeightEncoding encoding) {
  const std::filesystem::path tiny = golden("checkpoint/tiny_config.json");
  if (!std::filesystem::exists(tiny)) {
    return false;
  }
  config.vocab_size = golden_config(tiny).vocab_size;
  Random random(1);
  std::map<std::string, std::vector<float>> parameters;
  for (const TensorSpec& spec : expected_tensors(config)) {
    std::int64_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= side;
    }
    const double size = spec.is_matrix() ? 1 / std::sqrt(static_cast<double>(spec.shape[1])) : 0.1;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(size * random.normal());
    }
    parameters.emplace(spec.name, std::move(values));
  }
  write_weights(path, config, parameters, encoding, golden_tokenizer());
  return true;
}

}  // namespace

bool write_trained_model(const std::filesystem::path& path) {
  const std::filesystem::path checkpoint = golden("checkpoint/trained.pkl");
  if (!std::filesystem::exists(checkpoint)) {
    return false;
  }
  const auto parameters = pickled_parameters(checkpoint);
  write_weights(path, parameters.config, module_parameters(parameters.config, parameters.arrays),
                WeightEncoding::kF32, golden_tokenizer());
  return true;
}

bool write_slow_model(const std::filesystem::path& path) {
  return write_random_model(path,
                            {.d_model = 256, .num_encoder_layers = 8, .num_decoder_layers = 8},
                            WeightEncoding::kF32);
}

bool write_large_model(const std::filesystem::path& path) {
  return write_random_model(path, {}, WeightEncoding::kInt4);
}

}  // namespace needle::test
