#include "needle/export/export_weights.h"

#include <string>
#include <system_error>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/quant/weights_file.h"

namespace needle {
namespace {

constexpr std::string_view kEmbedding = "embedding.weight";

std::vector<float> values_of(const torch::Tensor& parameter) {
  const torch::Tensor host = to_host(parameter.to(torch::kFloat32));
  return {host.data_ptr<float>(), host.data_ptr<float>() + host.numel()};
}

// Removes the file at the end of the scope unless it was given its final name.
class UnverifiedFile {
 public:
  explicit UnverifiedFile(const std::filesystem::path& target)
      : target_(target),
        path_(target.parent_path() /
              format(".{}.unverified-{}", target.filename().string(), ::getpid())) {}
  ~UnverifiedFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  UnverifiedFile(const UnverifiedFile&) = delete;
  UnverifiedFile& operator=(const UnverifiedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void accept() const {
    std::error_code error;
    std::filesystem::rename(path_, target_, error);
    if (error) {
      throw FileError(format("{}: cannot take its name: {}", target_, error.message()));
    }
  }

 private:
  std::filesystem::path target_;
  std::filesystem::path path_;
};

}  // namespace

void export_weights(const Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt,
                    const Json& provenance, const ExportSettings& settings,
                    const std::filesystem::path& path) {
  const ModelConfig& config = model->config();
  if (tokenizer.vocab_size() != config.vocab_size) {
    throw ConfigError(
        format("the tokenizer has {} pieces, the model {}: they do not belong "
               "together",
               tokenizer.vocab_size(), config.vocab_size));
  }
  Json header;
  header["model"] = to_json(config);
  header["prompt"] = to_json(prompt);
  header["quantization"] = to_json(settings);
  header["quantization"]["group_size"] = kGroupSize;
  header["provenance"] = provenance;
  WeightsFileWriter writer(config, std::move(header));
  writer.add_tokenizer(tokenizer.model_bytes(), tokenizer.tables());
  const NamedTensors parameters = named_parameters(model);
  for (const TensorSpec& spec : expected_tensors(config)) {
    const auto found = parameters.find(spec.name);
    NEEDLE_CHECK(found != parameters.end(), "the model has no parameter {}", spec.name);
    writer.add_tensor(spec.name, values_of(found->second),
                      spec.name == kEmbedding ? settings.embedding : settings.kernels);
  }
  writer.write(path);
}

VerifyReport export_verified(const Needle& model, const Tokenizer& tokenizer,
                             const PromptConfig& prompt, const Json& provenance,
                             const ExportSettings& settings, const VerifyOptions& verify,
                             const std::filesystem::path& path) {
  const UnverifiedFile file(path);
  export_weights(model, tokenizer, prompt, provenance, settings, file.path());
  const VerifyReport report = verify_weights(model, file.path(), verify);
  check_verified(report, path.string());
  file.accept();
  return report;
}

}  // namespace needle
