#include "needle/core/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"

namespace needle {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the format's own reader
constexpr std::size_t kMaxRank = 64;
constexpr std::size_t kDataAlignment = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

// Sorted keys: unlike Json, finding one among a million is cheap.
using HeaderJson = nlohmann::json;

std::uint64_t read_little_endian_u64(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = kLengthBytes; i > 0; --i) {
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i - 1]);
  }
  return value;
}

// The element in the machine's order. Data is little-endian and may lie at any address.
template <typename Word>
Word load(const std::byte* place) {
  std::array<std::byte, sizeof(Word)> bytes;
  std::memcpy(bytes.data(), place, sizeof(Word));
  if constexpr (std::endian::native == std::endian::big) {
    std::reverse(bytes.begin(), bytes.end());
  }
  return std::bit_cast<Word>(bytes);
}

template <typename Word, typename Result, typename Convert>
std::vector<Result> load_all(const TensorView& tensor, Convert convert) {
  std::vector<Result> values(static_cast<std::size_t>(tensor.element_count()));
  NEEDLE_CHECK(tensor.bytes.size() == values.size() * sizeof(Word),
               "{} bytes for {} elements of {}", tensor.bytes.size(), values.size(),
               kDtypeNames.name(tensor.dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = convert(load<Word>(tensor.bytes.data() + i * sizeof(Word)));
  }
  return values;
}

// Bytes that `shape` needs; nothing if a dimension is negative or the product overflows.
std::optional<std::uint64_t> checked_bytes(std::span<const std::int64_t> shape, Dtype dtype) {
  std::uint64_t bytes = dtype_size(dtype);
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) {
      return std::nullopt;
    }
    if (size == 0) {
      empty = true;
    } else if (bytes > UINT64_MAX / static_cast<std::uint64_t>(size)) {
      return std::nullopt;
    } else {
      bytes *= static_cast<std::uint64_t>(size);
    }
  }
  return empty ? 0 : bytes;
}

HeaderJson parse_header(std::string_view text, const std::filesystem::path& path) {
  if (text.empty() || text.front() != '{') {
    throw FormatError(format("{}: not a safetensors file: its header is not a JSON object", path));
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const HeaderJson::parser_callback_t strict = [&](int depth, HeaderJson::parse_event_t event,
                                                   HeaderJson& value) {
    constexpr int kDeepest = 4;  // header, tensor, shape, its numbers
    if (depth > kDeepest) {
      throw FormatError(format("{}: the header is nested too deep", path));
    }
    if (event == HeaderJson::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == HeaderJson::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == HeaderJson::parse_event_t::key &&
               !keys.back().insert(value.get<std::string>()).second) {
      throw FormatError(
          format("{}: the header names \"{}\" twice", path, value.get_ref<const std::string&>()));
    }
    return true;
  };
  try {
    return HeaderJson::parse(text.begin(), text.end(), strict);
  } catch (const HeaderJson::exception& error) {
    throw FormatError(format("{}: the header is not valid JSON: {}", path, error.what()));
  }
}

std::vector<std::uint64_t> read_sizes(const HeaderJson& json, std::string_view what,
                                      std::string_view place) {
  if (!json.is_array()) {
    throw FormatError(format("{}: {} is not a list", place, what));
  }
  std::vector<std::uint64_t> sizes;
  for (const HeaderJson& size : json) {
    if (!size.is_number_unsigned() || size.get<std::uint64_t>() > INT64_MAX) {
      throw FormatError(format("{}: {} holds {}, expected integers of at least 0", place, what,
                               size.dump(-1, ' ', true, HeaderJson::error_handler_t::replace)));
    }
    sizes.push_back(size.get<std::uint64_t>());
  }
  return sizes;
}

struct Placed {
  std::uint64_t begin;
  std::uint64_t end;
  std::string_view name;
};

TensorView read_tensor(const HeaderJson& json, std::string_view place,
                       std::span<const std::byte> data, Placed& placed) {
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets") || !json["dtype"].is_string()) {
    throw FormatError(format("{}: expected exactly dtype, shape and data_offsets", place));
  }
  TensorView tensor;
  const auto& name = json["dtype"].get_ref<const std::string&>();
  // needle-rs packs two codes into a byte and counts bytes in the shape.
  const auto dtype = name == "I4" ? std::optional(Dtype::kU8) : kDtypeNames.parse(name);
  if (!dtype) {
    throw FormatError(
        format("{}: dtype {} is not one of {}", place, json["dtype"].dump(), kDtypeNames.list()));
  }
  tensor.dtype = *dtype;
  const auto shape = read_sizes(json["shape"], "shape", place);
  if (shape.size() > kMaxRank) {
    throw FormatError(
        format("{}: {} dimensions, at most {} are read", place, shape.size(), kMaxRank));
  }
  tensor.shape.assign(shape.begin(), shape.end());
  const auto offsets = read_sizes(json["data_offsets"], "data_offsets", place);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) {
    throw FormatError(
        format("{}: data_offsets {} lie outside the {} bytes of data: the file is "
               "truncated or its header is damaged",
               place, json["data_offsets"].dump(), data.size()));
  }
  const auto bytes = checked_bytes(tensor.shape, tensor.dtype);
  if (!bytes || *bytes != offsets[1] - offsets[0]) {
    throw FormatError(format("{}: shape {} of {} needs {} bytes, data_offsets give {}", place,
                             json["shape"].dump(), kDtypeNames.name(tensor.dtype),
                             bytes ? std::to_string(*bytes) : "too many", offsets[1] - offsets[0]));
  }
  placed.begin = offsets[0];
  placed.end = offsets[1];
  tensor.bytes =
      data.subspan(static_cast<std::size_t>(offsets[0]), static_cast<std::size_t>(*bytes));
  return tensor;
}

// Every byte of the data belongs to exactly one tensor.
void check_tiling(std::vector<Placed>& tensors, std::uint64_t data_bytes,
                  const std::filesystem::path& path) {
  std::sort(tensors.begin(), tensors.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t expected = 0;
  for (const Placed& tensor : tensors) {
    if (tensor.begin != expected) {
      throw FormatError(format("{}: tensor \"{}\" starts at {}, expected {}: tensors {}", path,
                               tensor.name, tensor.begin, expected,
                               tensor.begin < expected ? "overlap" : "leave a hole"));
    }
    expected = tensor.end;
  }
  if (expected != data_bytes) {
    throw FormatError(
        format("{}: {} bytes of data, the tensors end at {}", path, data_bytes, expected));
  }
}

}  // namespace

std::size_t dtype_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
    case Dtype::kU8:
    case Dtype::kI8:
      return 1;
    case Dtype::kI16:
    case Dtype::kF16:
    case Dtype::kBF16:
      return 2;
    case Dtype::kI32:
    case Dtype::kF32:
      return 4;
    case Dtype::kI64:
    case Dtype::kF64:
      return 8;
  }
  throw Error("dtype_size: not a dtype");
}

std::int64_t TensorView::element_count() const {
  const auto total = checked_bytes(shape, dtype);
  NEEDLE_CHECK(total.has_value(), "a dimension is negative or the shape is too large");
  return static_cast<std::int64_t>(*total / dtype_size(dtype));
}

std::vector<float> to_floats(const TensorView& tensor) {
  const auto widen = [](auto value) { return static_cast<float>(value); };
  switch (tensor.dtype) {
    case Dtype::kF32:
      return load_all<float, float>(tensor, widen);
    case Dtype::kF16:
      return load_all<std::uint16_t, float>(tensor, half_to_float);
    case Dtype::kBF16:
      return load_all<std::uint16_t, float>(tensor, bfloat16_to_float);
    case Dtype::kBool:
    case Dtype::kU8:
      return load_all<std::uint8_t, float>(tensor, widen);
    case Dtype::kI8:
      return load_all<std::int8_t, float>(tensor, widen);
    case Dtype::kI16:
      return load_all<std::int16_t, float>(tensor, widen);
    case Dtype::kI32:
    case Dtype::kI64:
    case Dtype::kF64:
      break;
  }
  throw FormatError(
      format("a tensor of {} does not fit float32 without loss", kDtypeNames.name(tensor.dtype)));
}

std::vector<std::int32_t> to_ints(const TensorView& tensor) {
  const auto widen = [](auto value) { return static_cast<std::int32_t>(value); };
  switch (tensor.dtype) {
    case Dtype::kBool:
    case Dtype::kU8:
      return load_all<std::uint8_t, std::int32_t>(tensor, widen);
    case Dtype::kI8:
      return load_all<std::int8_t, std::int32_t>(tensor, widen);
    case Dtype::kI16:
      return load_all<std::int16_t, std::int32_t>(tensor, widen);
    case Dtype::kI32:
      return load_all<std::int32_t, std::int32_t>(tensor, widen);
    case Dtype::kI64:
    case Dtype::kF16:
    case Dtype::kBF16:
    case Dtype::kF32:
    case Dtype::kF64:
      break;
  }
  throw FormatError(format("a tensor of {} does not fit 32-bit integers without loss",
                           kDtypeNames.name(tensor.dtype)));
}

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in float32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t wide_exponent = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN, quiet, its upper payload kept
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: a multiple of 2^-24. Adding 0.5 leaves that multiple, rounded half to even by
    // the adder, in the low bits of the sum's fraction.
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1;
    half = (magnitude - ((127u - 15u) << 23) + 0xfffu + odd) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // NaN, quiet
  }
  const std::uint32_t odd = (bits >> 16) & 1;
  return static_cast<std::uint16_t>((bits + 0x7fffu + odd) >> 16);
}

struct SafetensorsFile::Impl {
  explicit Impl(const std::filesystem::path& path) : file(path) {}

  MappedFile file;
  std::map<std::string, TensorView, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : impl_(std::make_unique<Impl>(path)) {
  const std::span<const std::byte> bytes = impl_->file.bytes();
  if (bytes.size() < kLengthBytes) {
    throw FormatError(format("{}: not a safetensors file: only {} bytes long", path, bytes.size()));
  }
  const std::uint64_t header_bytes = read_little_endian_u64(bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    throw FormatError(
        format("{}: not a safetensors file, or truncated: a header of {} bytes in a "
               "file of {}",
               path, header_bytes, bytes.size()));
  }
  const auto header = bytes.subspan(kLengthBytes, static_cast<std::size_t>(header_bytes));
  const auto data = bytes.subspan(kLengthBytes + header.size());
  const HeaderJson json = parse_header(
      std::string_view(reinterpret_cast<const char*>(header.data()), header.size()), path);
  std::vector<Placed> places;
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataKey) {
      continue;
    }
    Placed placed{};
    TensorView tensor = read_tensor(value, format("{}: tensor \"{}\"", path, name), data, placed);
    placed.name = impl_->tensors.emplace(name, std::move(tensor)).first->first;
    places.push_back(placed);
  }
  check_tiling(places, data.size(), path);
  if (const auto metadata = json.find(kMetadataKey); metadata != json.end()) {
    if (!metadata->is_object()) {
      throw FormatError(format("{}: {} is not an object", path, kMetadataKey));
    }
    for (const auto& [key, value] : metadata->items()) {
      if (!value.is_string()) {
        throw FormatError(format("{}: {}.{} is not a string", path, kMetadataKey, key));
      }
      impl_->metadata.emplace(key, value.get<std::string>());
    }
  }
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::map<std::string, TensorView, std::less<>>& SafetensorsFile::tensors() const {
  return impl_->tensors;
}

const std::map<std::string, std::string, std::less<>>& SafetensorsFile::metadata() const {
  return impl_->metadata;
}

bool SafetensorsFile::contains(std::string_view name) const {
  return impl_->tensors.find(name) != impl_->tensors.end();
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  if (const auto found = impl_->tensors.find(name); found != impl_->tensors.end()) {
    return found->second;
  }
  std::vector<std::string> names;
  for (const auto& [key, tensor] : impl_->tensors) {
    names.push_back(key);
  }
  std::string others;
  if (const auto nearest = nearest_name(name, names)) {
    others = format("; did you mean \"{}\"?", *nearest);
  } else {
    constexpr std::size_t kShown = 8;
    for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) {
      others += (i == 0 ? "; it holds " : ", ") + names[i];
    }
    others += names.size() > kShown ? format(" and {} more", names.size() - kShown) : "";
    others += names.empty() ? "; it holds no tensor" : "";
  }
  throw FormatError(format("{}: no tensor \"{}\"{}", impl_->file.path(), name, others));
}

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorView, std::less<>>& tensors,
                       const std::map<std::string, std::string, std::less<>>& metadata) {
  HeaderJson header = HeaderJson::object();
  if (!metadata.empty()) {
    HeaderJson& texts = header[std::string(kMetadataKey)] = HeaderJson::object();
    for (const auto& [key, value] : metadata) {
      texts[key] = value;
    }
  }
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    NEEDLE_CHECK(name != kMetadataKey, "{}: no tensor may be called {}", path, name);
    const auto bytes = checked_bytes(tensor.shape, tensor.dtype);
    NEEDLE_CHECK(bytes && *bytes == tensor.bytes.size() && tensor.shape.size() <= kMaxRank,
                 "{}: tensor \"{}\" has {} bytes, its shape and dtype {} need another number", path,
                 name, tensor.bytes.size(), kDtypeNames.name(tensor.dtype));
    header[name] = {{"dtype", std::string(kDtypeNames.name(tensor.dtype))},
                    {"shape", tensor.shape},
                    {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const HeaderJson::exception& error) {
    throw FormatError(format("{}: a name or a metadata text is not UTF-8: {}", path, error.what()));
  }
  const std::size_t beyond = (kLengthBytes + text.size()) % kDataAlignment;
  text.append(beyond == 0 ? 0 : kDataAlignment - beyond, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw FormatError(
        format("{}: the names of the tensors need a header of {} bytes, at most {} "
               "can be read",
               path, text.size(), kMaxHeaderBytes));
  }
  AtomicFileWriter writer(path);
  std::string length(kLengthBytes, '\0');
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i) & 0xff);
  }
  writer.write(length);
  writer.write(text);
  for (const auto& [name, tensor] : tensors) {
    writer.write(tensor.bytes);
  }
  writer.commit();
}

}  // namespace needle
