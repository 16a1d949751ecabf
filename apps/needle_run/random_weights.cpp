#include "apps/needle_run/random_weights.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <system_error>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/random.h"
#include "needle/quant/weights_file.h"
#include "needle/text/model_proto.h"

namespace needle {
namespace {

// The special pieces, all bytes, then a, b, ..., z, aa, ab, ...: every text can be written with
// them.
std::vector<VocabularyPiece> made_up_pieces(std::int64_t count) {
  std::vector<VocabularyPiece> pieces = {{"<pad>"},
                                         {"</s>"},
                                         {"<s>"},
                                         {"<unk>"},
                                         {std::string(kToolCallPiece)},
                                         {std::string(kToolsPiece)}};
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < 256; ++byte) {
    pieces.push_back({std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">"});
  }
  if (count < std::ssize(pieces)) {
    throw ConfigError(
        format("a vocabulary of {}; random weights need at least {} pieces", count, pieces.size()));
  }
  for (std::int64_t word = 0; std::ssize(pieces) < count; ++word) {
    std::string text;
    for (std::int64_t rest = word; rest >= 0; rest = rest / 26 - 1) {
      text.insert(text.begin(), static_cast<char>('a' + rest % 26));
    }
    pieces.push_back({.text = std::move(text), .score = -static_cast<float>(word)});
  }
  return pieces;
}

}  // namespace

void write_random_weights(const std::filesystem::path& config, const std::filesystem::path& path) {
  const auto model = from_json<ModelConfig>(read_json_file(config), config.string());
  Json header;
  header["model"] = to_json(model);
  WeightsFileWriter writer(model, header);
  const auto tokenizer =
      Tokenizer::from_bytes(model_proto_of_vocabulary(made_up_pieces(model.vocab_size)));
  writer.add_tokenizer(tokenizer.model_bytes(), tokenizer.tables());
  Random random(1);
  for (const TensorSpec& spec : expected_tensors(model)) {
    std::int64_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= side;
    }
    // Rows of a matrix of about unit length, as an initialisation draws them.
    const double size = spec.is_matrix() ? 1 / std::sqrt(static_cast<double>(spec.shape[1])) : 0.1;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(size * random.normal());
    }
    writer.add_tensor(spec.name, values, WeightEncoding::kInt4);
  }
  writer.write(path);
}

RandomWeights::RandomWeights(const std::filesystem::path& config)
    : path_(std::filesystem::temp_directory_path() /
            ("random-" + std::to_string(::getpid()) + ".needle")) {
  write_random_weights(config, path_);
#if defined(__GLIBC__)
  ::malloc_trim(0);  // else the writer's memory counts as the engine's in measurements
#endif
}

RandomWeights::~RandomWeights() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace needle
