#include "needle/runtime/loaded_model.h"

#include <optional>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/fields.h"

namespace needle::runtime {
namespace {

Tokenizer read_tokenizer(const std::shared_ptr<const WeightsFile>& owner) {
  const WeightsFile& file = *owner;
  const std::string where = file.path().string();
  if (file.tokenizer_model().empty()) {
    throw FormatError(format("{}: the file carries no tokenizer; export it again", where));
  }
  Tokenizer tokenizer = Tokenizer::from_tables(file.tokenizer_model(), file.vocabulary(), owner,
                                               where + " (tokenizer)");
  if (tokenizer.vocab_size() != file.model_config().vocab_size) {
    throw FormatError(format("{}: the tokenizer has {} pieces, the model {}", where,
                             tokenizer.vocab_size(), file.model_config().vocab_size));
  }
  return tokenizer;
}

// A member of the file's config; nothing if it has none of that name.
template <typename T>
std::optional<T> read_member(const WeightsFile& file, const char* name) {
  if (!file.config().contains(name)) {
    return {};
  }
  try {
    return from_json<T>(file.config().at(name),
                        format("{} (config.{})", file.path().string(), name));
  } catch (const ConfigError& error) {  // the file is at fault, not the user's settings
    throw FormatError(error.what());
  }
}

Numerics usable(Numerics wanted) {
  return select_kernels().multiply_int4 == nullptr ? Numerics::kFloat : wanted;
}

}  // namespace

struct LoadedModel::Impl {
  Impl(std::shared_ptr<const WeightsFile> file, const LoadOptions& options)
      : tokenizer(read_tokenizer(file)),
        prompt(read_member<PromptConfig>(*file, "prompt").value_or(PromptConfig{})),
        calibration(read_member<Calibration>(*file, "calibration")),
        config(file->config()),
        file_bytes(file->size_bytes()),
        engine(Model::load(std::move(file), usable(options.numerics)),
               {.threads = options.threads}),
        caller(engine, tokenizer, prompt, NameStyle::kUnique, calibration) {}

  Tokenizer tokenizer;
  PromptConfig prompt;
  std::optional<Calibration> calibration;
  Json config;
  std::uint64_t file_bytes;
  RuntimeEngine engine;
  FunctionCaller caller;
};

LoadedModel::LoadedModel(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

LoadedModel LoadedModel::load(const std::filesystem::path& path, const LoadOptions& options) {
  return LoadedModel(std::make_shared<Impl>(
      std::make_shared<const WeightsFile>(
          path, WeightsFileOptions{.verify_checksums = options.verify_checksums}),
      options));
}

LoadedModel LoadedModel::load_memory(std::span<const std::byte> bytes, const LoadOptions& options) {
  return LoadedModel(
      std::make_shared<Impl>(std::make_shared<const WeightsFile>(
                                 bytes, "model in memory",
                                 WeightsFileOptions{.verify_checksums = options.verify_checksums}),
                             options));
}

CallResult LoadedModel::generate(std::string_view query, std::string_view tools_json,
                                 std::function<bool(std::string_view text)> on_text) const {
  return call({.query = std::string(query),
               .tools_json = std::string(tools_json),
               .on_text = std::move(on_text)});
}

CallResult LoadedModel::call(const CallRequest& request) const {
  return impl_->caller.call(request);
}

std::vector<CallResult> LoadedModel::call_batch(std::span<const CallRequest> requests) const {
  return impl_->caller.call_batch(requests);
}

std::int64_t LoadedModel::prompt_overflow(const CallRequest& request) const {
  return impl_->caller.prompt_overflow(request);
}

const RuntimeEngine& LoadedModel::engine() const { return impl_->engine; }
const Tokenizer& LoadedModel::tokenizer() const { return impl_->tokenizer; }
const PromptConfig& LoadedModel::prompt_config() const { return impl_->prompt; }
const Json& LoadedModel::file_config() const { return impl_->config; }
std::uint64_t LoadedModel::file_bytes() const { return impl_->file_bytes; }

}  // namespace needle::runtime
