#include "apps/needle_run/random_weights.h"

#include <cmath>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <unistd.h>

#include "needle/core/fields.h"
#include "needle/core/random.h"

namespace needle {

namespace {

// In a function of its own: what the writer held is gone when it returns.
void write_random_weights(const std::filesystem::path& config, const std::filesystem::path& path) {
  const auto model = from_json<ModelConfig>(read_json_file(config), config.string());
  Json header;
  header["model"] = to_json(model);
  WeightsFileWriter writer(model, header);
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

}  // namespace

std::shared_ptr<const WeightsFile> random_weights(const std::filesystem::path& config) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("random-" + std::to_string(::getpid()) + ".needle");
  write_random_weights(config, path);
#if defined(__GLIBC__)
  ::malloc_trim(0);  // else the writer's memory counts as the engine's in measurements
#endif
  auto file = std::make_shared<const WeightsFile>(path);
  std::filesystem::remove(path);  // the map stays
  return file;
}

}  // namespace needle
