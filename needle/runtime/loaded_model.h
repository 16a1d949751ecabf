// A `.needle` file ready to answer: weights, tokenizer and prompt settings in one value.
//
//   const auto model = needle::runtime::LoadedModel::load("model.needle");
//   std::cout << model.generate("Wake me at 7", tools_json).text << '\n';
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/json.h"
#include "needle/decode/generate.h"
#include "needle/quant/weights_file.h"
#include "needle/runtime/engine.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle::runtime {

struct LoadOptions {
  std::size_t threads = 1;  // the calling one included; 0: one per core
  bool verify_checksums = true;
  Numerics numerics = Numerics::kMixed;  // float where the CPU has no kernels for integers
};

// Movable. Immutable: its functions are safe from several threads.
class LoadedModel {
 public:
  // Throws FileError if the file cannot be read, FormatError if it is not a weights file or carries
  // no tokenizer, or one of another vocabulary size.
  static LoadedModel load(const std::filesystem::path& path, const LoadOptions& options = {});
  // The same from a file's bytes in memory (needle-export embed), used where they lie if they start
  // at a multiple of 64 bytes: they must stay there as long as the model. Else they are copied.
  static LoadedModel load_memory(std::span<const std::byte> bytes, const LoadOptions& options = {});

  // What the published program's `generate` does: query and tools to calls. `on_text`, if given,
  // gets the text as it comes; false stops.
  CallResult generate(std::string_view query, std::string_view tools_json,
                      std::function<bool(std::string_view text)> on_text = {}) const;
  CallResult call(const CallRequest& request) const;  // with every setting
  // Several requests whose tokens go through the model together; FunctionCaller::call_batch has the
  // details. The same answers as alone, in the order of the requests.
  std::vector<CallResult> call_batch(std::span<const CallRequest> requests) const;

  // Tokens by which the request's prompt is too long: call() would cut it.
  std::int64_t prompt_overflow(const CallRequest& request) const;

  const RuntimeEngine& engine() const;
  const Tokenizer& tokenizer() const;
  const PromptConfig& prompt_config() const;
  const Json& file_config() const;  // the file's whole "config": model, prompt, provenance
  std::uint64_t file_bytes() const;

 private:
  struct Impl;
  explicit LoadedModel(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace needle::runtime
