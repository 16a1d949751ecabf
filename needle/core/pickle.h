// Reads a Python pickle of plain data and numpy arrays without executing anything in it.
//
// A pickle is a program for a stack machine that may import and call any function. This reader
// knows only the opcodes that build None, bool, int, float, str, bytes, list, tuple, dict and numpy
// arrays (protocols 0 to 5), and a short list of names that an array's pickle mentions; anything
// else is refused with a reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "needle/core/safetensors.h"

namespace needle {

struct PickleArray {
  Dtype dtype = Dtype::kF16;  // float16, float32 or float64
  std::vector<std::int64_t> shape;
  std::string bytes;  // little-endian, row-major, whatever the file had

  TensorView view() const;
};

struct PickleEntry;

// A value tree. Shared sub-objects of the file are copied; tuples become lists.
struct PickleValue {
  using List = std::vector<PickleValue>;
  using Dict = std::vector<PickleEntry>;  // insertion order; string keys only
  std::variant<std::monostate, bool, std::int64_t, double, std::string, List, Dict, PickleArray>
      value;

  bool is_dict() const { return std::holds_alternative<Dict>(value); }
  const PickleValue* find(std::string_view key) const;  // nullptr if absent or not a dict
};

// One of a dict. Not std::pair, whose traits would need PickleValue while it is being defined.
struct PickleEntry {
  std::string key;
  PickleValue value;
};

// Throws FormatError with the byte offset and the reason. Memory is bounded by a small multiple of
// the input.
PickleValue read_pickle(std::span<const std::byte> bytes);
PickleValue read_pickle_file(const std::filesystem::path& path);

// Protocol 4, for Python's pickle with numpy 1 or 2. Throws needle::Error on an array of another
// dtype than the three or whose bytes do not fit its shape.
std::string write_pickle(const PickleValue& value);

}  // namespace needle
