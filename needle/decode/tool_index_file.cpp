#include "needle/decode/tool_index_file.h"

#include <bit>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

static_assert(std::endian::native == std::endian::little, "the file holds the floats as they lie");

// The file: magic, fingerprint (64 hexadecimal digits), values in an embedding (uint32), the
// embeddings as float32, sha256 of all that (64 digits).
constexpr std::string_view kMagic = "needle tool index 1\n";
constexpr std::size_t kDigits = 64;
constexpr std::size_t kHeader = kMagic.size() + kDigits + sizeof(std::uint32_t);

std::string fingerprint_of(const Tokenizer& tokenizer, std::span<const std::string> tools,
                           const RetrieveOptions& options, std::string_view model) {
  std::string text =
      format("{}\n{}\n{} {} {} {}\n", model, tokenizer.fingerprint(), options.max_tokens,
             options.snake_case_names, static_cast<int>(options.json_escapes),
             static_cast<int>(options.special));
  for (const std::string& tool : tools) {  // with lengths: no two lists give one text
    text += format("{} ", tool.size()) + tool;
  }
  return sha256_hex(std::string_view(text));
}

using Embeddings = std::vector<std::vector<float>>;

// Nothing if the file is another's, or damaged.
std::optional<Embeddings> parse(std::string_view bytes, std::string_view fingerprint,
                                std::size_t tools) {
  if (bytes.size() < kHeader + kDigits || !bytes.starts_with(kMagic) ||
      bytes.substr(kMagic.size(), kDigits) != fingerprint) {
    return std::nullopt;
  }
  const std::string_view body = bytes.substr(0, bytes.size() - kDigits);
  std::uint32_t values = 0;
  std::memcpy(&values, bytes.data() + kHeader - sizeof(values), sizeof(values));
  const std::string_view data = body.substr(kHeader);
  const std::uint64_t row = std::uint64_t{values} * sizeof(float);
  if ((tools == 0 ? !data.empty() : data.size() / tools != row || data.size() % tools != 0) ||
      sha256_hex(body) != bytes.substr(body.size())) {
    return std::nullopt;
  }
  Embeddings embeddings(tools, std::vector<float>(values));
  for (std::size_t i = 0; i < tools; ++i) {
    std::memcpy(embeddings[i].data(), data.data() + i * row, row);
  }
  return embeddings;
}

std::string serialised(const Embeddings& embeddings, std::string_view fingerprint) {
  std::string bytes = std::string(kMagic) + std::string(fingerprint);
  const auto values =
      static_cast<std::uint32_t>(embeddings.empty() ? 0 : embeddings.front().size());
  bytes.append(reinterpret_cast<const char*>(&values), sizeof(values));
  for (const auto& embedding : embeddings) {
    bytes.append(reinterpret_cast<const char*>(embedding.data()), values * sizeof(float));
  }
  return bytes + sha256_hex(std::string_view(bytes));
}

}  // namespace

CachedToolIndex cached_tool_index(const Engine& engine, const Tokenizer& tokenizer,
                                  std::span<const std::string> tools,
                                  const RetrieveOptions& options, const std::filesystem::path& path,
                                  std::string_view model) {
  const std::string fingerprint = fingerprint_of(tokenizer, tools, options, model);
  if (std::filesystem::is_regular_file(path)) {
    if (auto embeddings = parse(read_file(path), fingerprint, tools.size())) {
      return {.index = ToolIndex(engine, tokenizer, std::move(*embeddings), options),
              .from_file = true};
    }
  }
  ToolIndex index(engine, tokenizer, tools, options);
  write_file_atomic(path, serialised(index.embeddings(), fingerprint));
  return {.index = std::move(index), .from_file = false};
}

}  // namespace needle
