#include "needle/quant/weights_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"

namespace needle {
namespace {

// A PNG-like signature: the high bit, the line endings and the end-of-file mark show a transfer
// that took the file for text.
constexpr std::array<char, 8> kMagic{'\x89', 'N', 'D', 'L', '\r', '\n', '\x1a', '\n'};
constexpr std::uint64_t kAlignment = 64;
constexpr std::uint32_t kMaxSections = 1 << 20;
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::size_t kNameBytes = 80;

struct FileHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t section_count;
  std::uint64_t file_bytes;
  std::uint32_t table_crc;  // of the section table
  std::array<std::uint32_t, 8> reserved;
  std::uint32_t header_crc;  // of the 60 bytes before
};
static_assert(sizeof(FileHeader) == 64, "docs/file-format.md says so");

struct TableEntry {
  std::array<char, kNameBytes> name;  // UTF-8, filled up with zeros, at least one zero
  std::uint32_t type;
  std::uint32_t rank;
  std::array<std::uint64_t, 2> shape;  // unused ones are zero
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t crc;
  std::uint32_t reserved;
};
static_assert(sizeof(TableEntry) == 128, "docs/file-format.md says so");

std::uint64_t aligned(std::uint64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

std::uint32_t header_crc(const FileHeader& header) {
  return crc32c(bytes_of(header).first(offsetof(FileHeader, header_crc)));
}

bool is_tensor(SectionType type) {
  return type != SectionType::kJson && type != SectionType::kBytes;
}

WeightEncoding encoding_of(SectionType type) {
  switch (type) {
    case SectionType::kInt8:
      return WeightEncoding::kInt8;
    case SectionType::kInt4:
      return WeightEncoding::kInt4;
    default:
      return WeightEncoding::kF32;
  }
}

SectionType type_of(WeightEncoding encoding) {
  switch (encoding) {
    case WeightEncoding::kInt8:
      return SectionType::kInt8;
    case WeightEncoding::kInt4:
      return SectionType::kInt4;
    default:
      return SectionType::kF32;
  }
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t side : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(side);
  }
  return "[" + text + "]";
}

std::uint64_t tensor_bytes(SectionType type, const std::vector<std::int64_t>& shape) {
  if (shape.size() == 2) {
    return packed_size(encoding_of(type), shape[0], shape[1]);
  }
  return packed_size(WeightEncoding::kF32, 1, shape.empty() ? 1 : shape[0]);
}

WeightsSection read_entry(const TableEntry& entry, const std::string& where) {
  const auto name_end = std::ranges::find(entry.name, '\0');
  if (name_end == entry.name.begin() || name_end == entry.name.end() ||
      std::any_of(name_end, entry.name.end(), [](char c) { return c != '\0'; })) {
    throw FormatError(format("{}: the name is empty or not closed by zeros", where));
  }
  WeightsSection section{.name = std::string(entry.name.begin(), name_end),
                         .type = static_cast<SectionType>(entry.type),
                         .shape = {},
                         .offset = entry.offset,
                         .size = entry.size,
                         .crc = entry.crc};
  if (kSectionTypeNames.name(section.type) == "?") {
    throw FormatError(format("{} ({}): unknown section type {}; this program knows 0 to 4", where,
                             section.name, entry.type));
  }
  if (entry.rank > (is_tensor(section.type) ? 2u : 0u) || entry.reserved != 0) {
    throw FormatError(format("{} ({}): rank {} does not fit the type {}", where, section.name,
                             entry.rank, kSectionTypeNames.name(section.type)));
  }
  for (std::size_t axis = 0; axis < entry.shape.size(); ++axis) {
    const std::uint64_t side = entry.shape[axis];
    const bool used = axis < entry.rank;
    if (used ? side < 1 || side > kMaxMatrixSide : side != 0) {
      throw FormatError(format("{} ({}): side {} of the shape is {}, expected {}", where,
                               section.name, axis, side, used ? "1 to 2^28" : "0"));
    }
    if (used) {
      section.shape.push_back(static_cast<std::int64_t>(side));
    }
  }
  if (section.type != SectionType::kF32 && is_tensor(section.type) && section.shape.size() != 2) {
    throw FormatError(format("{} ({}): only matrices can be {}", where, section.name,
                             kSectionTypeNames.name(section.type)));
  }
  return section;
}

void add_matrix(std::vector<TensorSpec>& specs, std::string name, std::int64_t rows,
                std::int64_t cols) {
  specs.push_back({.name = std::move(name), .shape = {rows, cols}});
}
void add_vector(std::vector<TensorSpec>& specs, std::string name, std::int64_t size) {
  specs.push_back({.name = std::move(name), .shape = {size}});
}
void add_scalar(std::vector<TensorSpec>& specs, std::string name) {
  specs.push_back({.name = std::move(name), .shape = {}});
}

void add_attention(std::vector<TensorSpec>& specs, const std::string& prefix,
                   const ModelConfig& config) {
  add_vector(specs, prefix + "norm.scale", config.d_model);
  add_scalar(specs, prefix + "gate");
  add_matrix(specs, prefix + "attention.q_proj.weight", config.d_model, config.d_model);
  add_matrix(specs, prefix + "attention.k_proj.weight", config.kv_dim(), config.d_model);
  add_matrix(specs, prefix + "attention.v_proj.weight", config.kv_dim(), config.d_model);
  add_matrix(specs, prefix + "attention.out_proj.weight", config.d_model, config.d_model);
  add_vector(specs, prefix + "attention.q_norm.scale", config.head_dim());
  add_vector(specs, prefix + "attention.k_norm.scale", config.head_dim());
}

void add_feed_forward(std::vector<TensorSpec>& specs, const std::string& prefix,
                      const ModelConfig& config) {
  if (config.no_feedforward) {
    return;
  }
  add_vector(specs, prefix + "norm.scale", config.d_model);
  add_scalar(specs, prefix + "gate");
  add_matrix(specs, prefix + "feed_forward.gate_proj.weight", config.d_ff, config.d_model);
  add_matrix(specs, prefix + "feed_forward.up_proj.weight", config.d_ff, config.d_model);
  add_matrix(specs, prefix + "feed_forward.down_proj.weight", config.d_model, config.d_ff);
}

}  // namespace

std::vector<TensorSpec> expected_tensors(const ModelConfig& config) {
  config.validate("weights file");
  if (config.num_encoder_layers > kMaxLayers || config.num_decoder_layers > kMaxLayers ||
      config.vocab_size > kMaxMatrixSide || config.d_model > kMaxMatrixSide ||
      config.d_ff > kMaxMatrixSide || config.contrastive_dim > kMaxMatrixSide) {
    throw ConfigError(
        "weights file: model: a size is out of range (layers up to 4096, others 2^28)");
  }
  std::vector<TensorSpec> specs;
  add_matrix(specs, "embedding.weight", config.vocab_size, config.d_model);
  for (std::int64_t layer = 0; layer < config.num_encoder_layers; ++layer) {
    const std::string prefix = format("encoder.layers.{}.", layer);
    add_attention(specs, prefix + "self_attn.", config);
    add_feed_forward(specs, prefix + "ffn.", config);
  }
  add_vector(specs, "encoder.final_norm.scale", config.d_model);
  for (std::int64_t layer = 0; layer < config.num_decoder_layers; ++layer) {
    const std::string prefix = format("decoder.layers.{}.", layer);
    add_attention(specs, prefix + "self_attn.", config);
    add_attention(specs, prefix + "cross_attn.", config);
    add_feed_forward(specs, prefix + "ffn.", config);
  }
  add_vector(specs, "decoder.final_norm.scale", config.d_model);
  add_matrix(specs, "contrastive_head.hidden.weight", config.d_model / 4, config.d_model);
  add_vector(specs, "contrastive_head.hidden.bias", config.d_model / 4);
  add_matrix(specs, "contrastive_head.proj.weight", config.contrastive_dim, config.d_model / 4);
  add_scalar(specs, "log_temp");
  return specs;
}

WeightsFile::WeightsFile(const std::filesystem::path& path, const WeightsFileOptions& options)
    : path_(path), file_(std::in_place, path), bytes_(file_->bytes()) {
  read(options);
}

WeightsFile::WeightsFile(std::span<const std::byte> memory, std::string_view name,
                         const WeightsFileOptions& options)
    : path_(name), bytes_(memory) {
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment != 0) {
    copy_.resize(memory.size() + kAlignment);
    void* start = copy_.data();
    std::size_t room = copy_.size();
    std::align(kAlignment, memory.size(), start, room);
    std::ranges::copy(memory, static_cast<std::byte*>(start));
    bytes_ = {static_cast<const std::byte*>(start), memory.size()};
  }
  read(options);
}

void WeightsFile::read(const WeightsFileOptions& options) {
  read_table();
  for (const WeightsSection& section : sections_) {
    check_section(section, options.verify_checksums);
  }
  check_config();
}

void WeightsFile::read_table() {
  const std::span<const std::byte> all = bytes_;
  const std::string where = path().string();
  FileHeader header;
  if (all.size() >= kMagic.size() && std::memcmp(all.data(), kMagic.data(), kMagic.size()) != 0) {
    throw FormatError(
        format("{}: not a weights file (its first bytes are not the signature); "
               "make one with needle-export",
               where));
  }
  if (all.size() < sizeof header) {
    throw FormatError(format("{}: {} bytes are too few for a weights file; its header alone has {}",
                             where, all.size(), sizeof header));
  }
  std::memcpy(&header, all.data(), sizeof header);
  if (header.version != kWeightsFileVersion) {
    throw FormatError(format("{}: format version {}, this program reads version {}; export again",
                             where, header.version, kWeightsFileVersion));
  }
  if (header.header_crc != header_crc(header)) {
    throw FormatError(format("{}: the header is damaged (checksum {}, computed {})", where,
                             header.header_crc, header_crc(header)));
  }
  if (header.file_bytes != all.size()) {
    throw FormatError(format("{}: {} bytes long, its header says {}; the file was cut or changed",
                             where, all.size(), header.file_bytes));
  }
  const std::uint64_t table_bytes = std::uint64_t{header.section_count} * sizeof(TableEntry);
  if (header.section_count > kMaxSections || table_bytes > all.size() - sizeof header) {
    throw FormatError(format("{}: a table of {} sections does not fit into {} bytes", where,
                             header.section_count, all.size()));
  }
  const auto table = all.subspan(sizeof header, table_bytes);
  if (crc32c(table) != header.table_crc) {
    throw FormatError(format("{}: the section table is damaged (checksum {}, computed {})", where,
                             header.table_crc, crc32c(table)));
  }
  std::uint64_t end = sizeof header + table_bytes;  // of what was read so far
  for (std::uint32_t i = 0; i < header.section_count; ++i) {
    TableEntry entry;
    std::memcpy(&entry, table.data() + i * sizeof entry, sizeof entry);
    WeightsSection section = read_entry(entry, format("{}: section {}", where, i));
    if (section.offset != aligned(end) || section.size > all.size() ||
        section.offset > all.size() - section.size) {
      throw FormatError(
          format("{}: section {} lies at {} with {} bytes; expected to start at {} "
                 "and to end within {}",
                 where, section.name, section.offset, section.size, aligned(end), all.size()));
    }
    const auto padding = all.subspan(end, section.offset - end);
    if (std::ranges::any_of(padding, [](std::byte b) { return b != std::byte{0}; })) {
      throw FormatError(
          format("{}: the padding before section {} is not zero", where, section.name));
    }
    end = section.offset + section.size;
    if (!index_by_name_.emplace(section.name, sections_.size()).second) {
      throw FormatError(format("{}: two sections are called {}", where, section.name));
    }
    sections_.push_back(std::move(section));
  }
  if (end != all.size()) {
    throw FormatError(format("{}: {} bytes follow the last section", where, all.size() - end));
  }
}

void WeightsFile::check_section(const WeightsSection& section, bool verify_checksum) const {
  if (is_tensor(section.type) && tensor_bytes(section.type, section.shape) != section.size) {
    throw FormatError(format("{}: section {} has {} bytes, {} of shape {} needs {}",
                             path().string(), section.name, section.size,
                             kSectionTypeNames.name(section.type), shape_text(section.shape),
                             tensor_bytes(section.type, section.shape)));
  }
  if (verify_checksum && crc32c(bytes(section)) != section.crc) {
    throw FormatError(format("{}: section {} is damaged (checksum {}, computed {})",
                             path().string(), section.name, section.crc, crc32c(bytes(section))));
  }
}

void WeightsFile::check_config() {
  const std::string where = path().string();
  const WeightsSection* section = find(kConfigSection);
  if (section == nullptr || section->type != SectionType::kJson) {
    throw FormatError(format("{}: the section \"config\" (json) is missing", where));
  }
  const auto text = bytes(*section);
  config_ =
      parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, where + " (config)");
  if (!config_.is_object() || !config_.contains("model")) {
    throw FormatError(format("{}: the config has no member \"model\"", where));
  }
  std::vector<TensorSpec> specs;
  try {
    model_config_ = from_json<ModelConfig>(config_.at("model"), where + " (config.model)");
    specs = expected_tensors(model_config_);
  } catch (const ConfigError& error) {  // the file is at fault, not the user's settings
    throw FormatError(format("{}: {}", where, error.what()));
  }
  for (const TensorSpec& spec : specs) {
    const WeightsSection* found = find(spec.name);
    if (found == nullptr || !is_tensor(found->type) || found->shape != spec.shape) {
      throw FormatError(format(
          "{}: expected a tensor {} of shape {}, the file has {}", where, spec.name,
          shape_text(spec.shape),
          found == nullptr
              ? "none"
              : format("{} {}", kSectionTypeNames.name(found->type), shape_text(found->shape))));
    }
  }
}

const WeightsSection* WeightsFile::find(std::string_view name) const {
  const auto found = index_by_name_.find(name);
  return found == index_by_name_.end() ? nullptr : &sections_[found->second];
}

std::span<const std::byte> WeightsFile::bytes(const WeightsSection& section) const {
  return bytes_.subspan(section.offset, section.size);
}

std::string_view WeightsFile::tokenizer_model() const {
  const WeightsSection* section = find(kTokenizerSection);
  if (section == nullptr) {
    return {};
  }
  const auto data = bytes(*section);
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

std::span<const std::byte> WeightsFile::vocabulary() const {
  const WeightsSection* section = find(kVocabularySection);
  return section == nullptr || section->type != SectionType::kBytes ? std::span<const std::byte>()
                                                                    : bytes(*section);
}

const WeightsSection& WeightsFile::tensor(std::string_view name) const {
  const WeightsSection* section = find(name);
  if (section == nullptr || !is_tensor(section->type)) {
    throw FormatError(format("{}: no tensor is called {}", path().string(), name));
  }
  return *section;
}

std::span<const float> WeightsFile::vector(std::string_view name) const {
  const WeightsSection& section = tensor(name);
  NEEDLE_CHECK(section.shape.size() < 2, "{} is a matrix", name);
  const auto data = bytes(section);  // 64-byte aligned in a map that starts at a page
  return {reinterpret_cast<const float*>(data.data()), data.size() / sizeof(float)};
}

MatrixView WeightsFile::matrix(std::string_view name) const {
  const WeightsSection& section = tensor(name);
  NEEDLE_CHECK(section.shape.size() == 2, "{} is not a matrix", name);
  return {.encoding = encoding_of(section.type),
          .rows = section.shape[0],
          .cols = section.shape[1],
          .bytes = bytes(section)};
}

WeightsFileWriter::WeightsFileWriter(const ModelConfig& model, Json config) {
  NEEDLE_CHECK(config.is_object() && config.contains("model") &&
                   from_json<ModelConfig>(config.at("model"), "config.model") == model,
               "the config's member \"model\" is not the model's config");
  for (TensorSpec& spec : expected_tensors(model)) {
    shapes_.emplace(std::move(spec.name), std::move(spec.shape));
  }
  const std::string text = config.dump();
  const auto bytes = std::as_bytes(std::span(text));
  add({.name = std::string(kConfigSection), .type = SectionType::kJson},
      {bytes.begin(), bytes.end()});
}

void WeightsFileWriter::add_tokenizer(std::string_view model_proto,
                                      std::span<const std::byte> tables) {
  const auto bytes = std::as_bytes(std::span(model_proto));
  add({.name = std::string(kTokenizerSection), .type = SectionType::kBytes},
      {bytes.begin(), bytes.end()});
  if (!tables.empty()) {
    add({.name = std::string(kVocabularySection), .type = SectionType::kBytes},
        {tables.begin(), tables.end()});
  }
}

void WeightsFileWriter::add_tensor(std::string_view name, std::span<const float> values,
                                   WeightEncoding encoding) {
  const auto spec = shapes_.find(name);
  NEEDLE_CHECK(spec != shapes_.end(), "a model of this shape has no tensor {}", name);
  const std::vector<std::int64_t>& shape = spec->second;
  const bool is_matrix = shape.size() == 2;
  const std::int64_t rows = is_matrix ? shape[0] : 1;
  const std::int64_t cols = is_matrix ? shape[1] : shape.empty() ? 1 : shape[0];
  const WeightEncoding used = is_matrix ? encoding : WeightEncoding::kF32;
  try {
    add({.name = spec->first, .type = type_of(used), .shape = shape},
        pack_matrix(used, values, rows, cols));
  } catch (const Error& error) {
    throw Error(format("{}: {}", name, error.what()));
  }
}

void WeightsFileWriter::add_section(const WeightsFile& file, const WeightsSection& section) {
  const std::span<const std::byte> bytes = file.bytes(section);
  add({.name = section.name, .type = section.type, .shape = section.shape},
      {bytes.begin(), bytes.end()});
}

void WeightsFileWriter::add(WeightsSection entry, std::vector<std::byte> bytes) {
  NEEDLE_CHECK(entry.name.size() < kNameBytes, "the section name {} is too long", entry.name);
  for (const Section& section : sections_) {
    NEEDLE_CHECK(section.entry.name != entry.name, "{} was added twice", entry.name);
  }
  entry.size = bytes.size();
  entry.crc = crc32c(bytes);
  sections_.push_back({.entry = std::move(entry), .bytes = std::move(bytes)});
}

void WeightsFileWriter::write(const std::filesystem::path& path) const {
  for (const auto& expected : shapes_) {
    const std::string& name = expected.first;
    NEEDLE_CHECK(
        std::ranges::any_of(sections_, [&name](const Section& s) { return s.entry.name == name; }),
        "the tensor {} was not added", name);
  }
  std::vector<TableEntry> table(sections_.size());
  std::uint64_t end = sizeof(FileHeader) + table.size() * sizeof(TableEntry);
  for (std::size_t i = 0; i < table.size(); ++i) {
    const WeightsSection& section = sections_[i].entry;
    TableEntry& entry = table[i];
    std::ranges::copy(section.name, entry.name.begin());
    entry.type = static_cast<std::uint32_t>(section.type);
    entry.rank = static_cast<std::uint32_t>(section.shape.size());
    std::ranges::copy(section.shape, entry.shape.begin());
    entry.offset = aligned(end);
    entry.size = section.size;
    entry.crc = section.crc;
    end = entry.offset + entry.size;
  }
  FileHeader header{};
  header.magic = kMagic;
  header.version = kWeightsFileVersion;
  header.section_count = static_cast<std::uint32_t>(table.size());
  header.file_bytes = end;
  header.table_crc = crc32c(std::as_bytes(std::span(table)));
  header.header_crc = header_crc(header);

  AtomicFileWriter file(path);
  file.write(bytes_of(header));
  file.write(std::as_bytes(std::span(table)));
  for (const Section& section : sections_) {
    file.pad_to(kAlignment);
    file.write(std::span<const std::byte>(section.bytes));
  }
  file.commit();
}

void write_with_config(const WeightsFile& file, const Json& config,
                       const std::filesystem::path& path) {
  WeightsFileWriter writer(file.model_config(), config);
  for (const WeightsSection& section : file.sections()) {
    if (section.name != kConfigSection) {
      writer.add_section(file, section);
    }
  }
  writer.write(path);
}

}  // namespace needle
