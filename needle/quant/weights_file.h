// The deployed model in one memory-mapped file, extension `.needle`: a fixed header, a table of
// named sections, and the sections themselves, each 64-byte aligned and under its own CRC-32C.
// docs/file-format.md describes every byte.
//
// Sections: "config" (JSON: model, prompt, quantization, provenance), "tokenizer" (a SentencePiece
// model), "vocabulary" (its tables, needle/text/vocabulary.h) and one per parameter, named as the
// checkpoint's: encoder.layers.0.self_attn.gate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/quant/model_config.h"
#include "needle/quant/pack.h"

namespace needle {

inline constexpr std::uint32_t kWeightsFileVersion = 1;
inline constexpr std::string_view kConfigSection = "config";
inline constexpr std::string_view kTokenizerSection = "tokenizer";
inline constexpr std::string_view kVocabularySection = "vocabulary";

enum class SectionType : std::uint32_t { kJson = 0, kBytes = 1, kF32 = 2, kInt8 = 3, kInt4 = 4 };
inline constexpr EnumNames<SectionType, 5> kSectionTypeNames{{{{SectionType::kJson, "json"},
                                                               {SectionType::kBytes, "bytes"},
                                                               {SectionType::kF32, "f32"},
                                                               {SectionType::kInt8, "int8"},
                                                               {SectionType::kInt4, "int4"}}}};

struct WeightsSection {
  std::string name;
  SectionType type = SectionType::kBytes;
  std::vector<std::int64_t> shape{};  // tensors only: [] scalar, [n] vector, [rows, cols] matrix
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint32_t crc = 0;
};

struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;

  bool is_matrix() const { return shape.size() == 2; }
};
// Every tensor that a model of this shape has: what the exporter writes and the runtime expects.
// Throws ConfigError if the config is not valid or no file could hold it.
std::vector<TensorSpec> expected_tensors(const ModelConfig& config);

struct WeightsFileOptions {
  bool verify_checksums = true;  // reads every byte once; the table's own is always checked
};

// A mapped file. Opening checks magic, version, the file's size, the header's and every section's
// checksum, every name, type, shape, offset and size, that sections neither overlap nor leave
// anything but zero padding between them, that the config is valid and its tensors are there in the
// right shapes. Throws FormatError naming the path, the section and what was expected.
// Views point into the map: they live as long as this object. Safe to read from several threads.
class WeightsFile {
 public:
  explicit WeightsFile(const std::filesystem::path& path, const WeightsFileOptions& options = {});
  // A file that lies in memory: compiled into the program, or in a device's flash. Used where it
  // is, if it starts at a multiple of 64 bytes, and must outlive this object; else it is copied.
  // `name` stands for the path in messages.
  WeightsFile(std::span<const std::byte> memory, std::string_view name,
              const WeightsFileOptions& options = {});

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size_bytes() const { return bytes_.size(); }
  const std::vector<WeightsSection>& sections() const { return sections_; }  // in file order
  const WeightsSection* find(std::string_view name) const;                   // nullptr if absent
  std::span<const std::byte> bytes(const WeightsSection& section) const;

  const Json& config() const { return config_; }  // the whole "config" section
  const ModelConfig& model_config() const { return model_config_; }
  std::string_view tokenizer_model() const;       // empty if the file carries none
  std::span<const std::byte> vocabulary() const;  // the tokenizer's tables; empty if there are none

  std::span<const float> vector(std::string_view name) const;  // a scalar is a vector of one
  MatrixView matrix(std::string_view name) const;

 private:
  const WeightsSection& tensor(std::string_view name) const;
  void read(const WeightsFileOptions& options);
  void read_table();
  void check_section(const WeightsSection& section, bool verify_checksum) const;
  void check_config();

  std::filesystem::path path_;
  std::optional<MappedFile> file_;    // either this holds the bytes,
  std::vector<std::byte> copy_;       // or this does, or the caller
  std::span<const std::byte> bytes_;  // all of them
  std::vector<WeightsSection> sections_;
  std::map<std::string, std::size_t, std::less<>> index_by_name_;
  Json config_;
  ModelConfig model_config_;
};

// Collects a file's sections and writes them at once, atomically. Not thread-safe.
class WeightsFileWriter {
 public:
  // `config` becomes the "config" section; its member "model" must be `model`.
  WeightsFileWriter(const ModelConfig& model, Json config);

  // `tables`: what Tokenizer::tables() says; without them, loading takes longer.
  void add_tokenizer(std::string_view model_proto, std::span<const std::byte> tables = {});
  // One of expected_tensors(); a matrix in the encoding given, anything else as f32.
  // Throws needle::Error on an unknown name, a wrong number of values or a value that is not
  // finite.
  void add_tensor(std::string_view name, std::span<const float> values, WeightEncoding encoding);

  // A section as it lies in another file. The tensors of expected_tensors() have that file's
  // shapes.
  void add_section(const WeightsFile& file, const WeightsSection& section);

  // Throws needle::Error if a tensor is missing, FileError if the system refuses.
  void write(const std::filesystem::path& path) const;

 private:
  struct Section {
    WeightsSection entry;
    std::vector<std::byte> bytes;
  };
  void add(WeightsSection entry, std::vector<std::byte> bytes);

  std::map<std::string, std::vector<std::int64_t>, std::less<>> shapes_;
  std::vector<Section> sections_;
};

// The same file with another "config" section, whose member "model" must be the same. `path` may be
// the file's own: it is replaced at once, and what is mapped stays readable.
void write_with_config(const WeightsFile& file, const Json& config,
                       const std::filesystem::path& path);

}  // namespace needle
