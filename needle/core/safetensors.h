// The safetensors container: u64 header length, JSON header, tensor bytes without holes.
// Format: https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/enum_names.h"

namespace needle {

enum class Dtype { kBool, kU8, kI8, kI16, kI32, kI64, kF16, kBF16, kF32, kF64 };
inline constexpr EnumNames<Dtype, 10> kDtypeNames{{{{Dtype::kBool, "BOOL"},
                                                    {Dtype::kU8, "U8"},
                                                    {Dtype::kI8, "I8"},
                                                    {Dtype::kI16, "I16"},
                                                    {Dtype::kI32, "I32"},
                                                    {Dtype::kI64, "I64"},
                                                    {Dtype::kF16, "F16"},
                                                    {Dtype::kBF16, "BF16"},
                                                    {Dtype::kF32, "F32"},
                                                    {Dtype::kF64, "F64"}}}};
std::size_t dtype_size(Dtype dtype);

// A tensor's place in memory; does not own it. Little-endian, row-major, at any alignment.
struct TensorView {
  Dtype dtype = Dtype::kF32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;

  std::int64_t element_count() const;
};

// Values of a floating-point or integer tensor, widened to the type asked for. Throws FormatError
// on a dtype that cannot be widened without loss.
std::vector<float> to_floats(const TensorView& tensor);
std::vector<std::int32_t> to_ints(const TensorView& tensor);

float half_to_float(std::uint16_t bits);   // IEEE binary16
std::uint16_t float_to_half(float value);  // round half to even
float bfloat16_to_float(std::uint16_t bits);
std::uint16_t float_to_bfloat16(float value);  // round half to even

// A mapped file. Opening checks the header's length, its JSON, every dtype, shape, offset, that
// tensors neither overlap nor leave holes, and the file's size; throws FormatError naming the path
// and the tensor. Views point into the map: they live as long as this object. Safe to read from
// several threads.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::map<std::string, TensorView, std::less<>>& tensors() const;
  const std::map<std::string, std::string, std::less<>>& metadata() const;
  bool contains(std::string_view name) const;
  const TensorView& at(
      std::string_view name) const;  // throws FormatError naming what the file holds instead

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes atomically; tensors in the order of their names, the header padded so that data starts at
// a multiple of 64.
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, TensorView, std::less<>>& tensors,
                       const std::map<std::string, std::string, std::less<>>& metadata = {});

}  // namespace needle
