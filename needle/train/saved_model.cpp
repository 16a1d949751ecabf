#include "needle/train/saved_model.h"

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/model/checkpoint.h"
#include "needle/model/released_checkpoint.h"
#include "needle/train/checkpoint_folder.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

// What model.json holds.
struct ModelFile {
  ModelConfig model;
  PromptConfig prompt;
  std::string tokenizer_sha256;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("model", self.model, "Shape of the network");
    visit("prompt", self.prompt, "How prompts are written");
    visit("tokenizer_sha256", self.tokenizer_sha256, "SHA-256 of tokenizer.model");
  }
};

void check_tokenizer(const Tokenizer& tokenizer, const ModelConfig& model, const fs::path& where) {
  if (tokenizer.vocab_size() != model.vocab_size) {
    throw ConfigError(format(
        "{}: the model has {} tokens, the tokenizer {}: it belongs to another model; give the "
        "right one with --tokenizer",
        where, model.vocab_size, tokenizer.vocab_size()));
  }
}

fs::path tokenizer_beside(const fs::path& pickle) {
  for (const char* name : {"needle.model", "tokenizer/needle.model", "tokenizer.model"}) {
    const fs::path candidate = pickle.parent_path() / name;
    if (fs::is_regular_file(candidate)) {
      return candidate;
    }
  }
  throw FileError(
      format("{}: no tokenizer beside it (needle.model); give one with --tokenizer", pickle));
}

SavedModel load_pickle(const fs::path& path, const fs::path& tokenizer_path) {
  SavedModel saved{.model = load_released_checkpoint(path),
                   .tokenizer = Tokenizer::load(tokenizer_path.empty() ? tokenizer_beside(path)
                                                                       : tokenizer_path),
                   .prompt = {},
                   .source = path};
  check_tokenizer(saved.tokenizer, saved.model->config(), path);
  saved.model->eval();
  return saved;
}

SavedModel load_folder(const fs::path& folder, const fs::path& tokenizer_path) {
  if (fs::exists(folder / "manifest.json")) {
    if (const std::string damage = checkpoint_damage(folder); !damage.empty()) {
      throw FormatError(format("damaged checkpoint: {}", damage));
    }
  }
  const fs::path description = folder / "model.json";
  const auto file = from_json<ModelFile>(read_json_file(description), description.string());
  file.model.validate(description.string());
  SavedModel saved{.model = Needle(file.model),
                   .tokenizer = Tokenizer::load(tokenizer_path.empty() ? folder / "tokenizer.model"
                                                                       : tokenizer_path),
                   .prompt = file.prompt,
                   .source = folder};
  check_tokenizer(saved.tokenizer, file.model, folder);
  if (saved.tokenizer.fingerprint() != file.tokenizer_sha256) {
    throw ConfigError(format(
        "{}: the tokenizer is not the one the model was trained with (SHA-256 {}, expected {})",
        folder, saved.tokenizer.fingerprint(), file.tokenizer_sha256));
  }
  load_model_parameters(saved.model, folder / "model.safetensors");
  saved.model->eval();
  return saved;
}

}  // namespace

SavedModel load_saved_model(const fs::path& path, const fs::path& tokenizer) {
  if (!fs::exists(path)) {
    throw FileError(format("{}: no such checkpoint", path));
  }
  if (fs::is_directory(path)) {
    return load_folder(resolve_checkpoint(path), tokenizer);
  }
  return path.extension() == ".safetensors" ? load_folder(path.parent_path(), tokenizer)
                                            : load_pickle(path, tokenizer);
}

void write_saved_model(const fs::path& folder, const Needle& model, const Tokenizer& tokenizer,
                       const PromptConfig& prompt) {
  save_model_parameters(model, folder / "model.safetensors");
  write_json_file(folder / "model.json",
                  to_json(ModelFile{.model = model->config(),
                                    .prompt = prompt,
                                    .tokenizer_sha256 = tokenizer.fingerprint()}));
  write_file_atomic(folder / "tokenizer.model", tokenizer.model_bytes());
}

}  // namespace needle
