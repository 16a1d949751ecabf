// write_pickle of needle/core/pickle.h.
#include <bit>
#include <limits>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/pickle.h"

namespace needle {
namespace {

constexpr int kMaxDepth = 100;

class PickleWriter {
 public:
  std::string finish(const PickleValue& value) {
    out_ = "\x80\x04";  // protocol 4; frames only help a reader that streams
    write(value, 0);
    out_ += '.';
    return std::move(out_);
  }

 private:
  void little_endian(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      out_ += static_cast<char>(value >> (8 * i) & 0xff);
    }
  }

  void counted(char small, char medium, char large, std::string_view bytes) {
    if (bytes.size() <= 0xff) {
      out_ += small;
      little_endian(bytes.size(), 1);
    } else if (bytes.size() <= 0xffffffff) {
      out_ += medium;
      little_endian(bytes.size(), 4);
    } else {
      out_ += large;
      little_endian(bytes.size(), 8);
    }
    out_ += bytes;
  }

  void text(std::string_view value) { counted('\x8c', 'X', '\x8d', value); }
  void bytes(std::string_view value) { counted('C', 'B', '\x8e', value); }

  void integer(std::int64_t value) {
    if (value >= 0 && value <= 0xff) {
      out_ += 'K';
      little_endian(static_cast<std::uint64_t>(value), 1);
    } else if (value >= 0 && value <= 0xffff) {
      out_ += 'M';
      little_endian(static_cast<std::uint64_t>(value), 2);
    } else if (value >= std::numeric_limits<std::int32_t>::min() &&
               value <= std::numeric_limits<std::int32_t>::max()) {
      out_ += 'J';
      little_endian(static_cast<std::uint64_t>(value), 4);
    } else {
      out_ += "\x8a\x08";
      little_endian(static_cast<std::uint64_t>(value), 8);
    }
  }

  void real(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    out_ += 'G';
    for (int i = 7; i >= 0; --i) {
      out_ += static_cast<char>(bits >> (8 * i) & 0xff);
    }
  }

  void global(std::string_view module, std::string_view name) {
    text(module);
    text(name);
    out_ += '\x93';
  }

  // numpy.dtype("f2", False, True) with the state (3, "<", None, None, None, -1, -1, 0)
  void dtype(Dtype type) {
    global("numpy", "dtype");
    switch (type) {
      case Dtype::kF16:
        text("f2");
        break;
      case Dtype::kF32:
        text("f4");
        break;
      case Dtype::kF64:
        text("f8");
        break;
      default:
        throw Error(format("write_pickle: an array of {}, expected F16, F32 or F64",
                           kDtypeNames.name(type)));
    }
    out_ += "\x89\x88\x87R";
    out_ += '(';
    integer(3);
    text("<");
    out_ += "NNN";
    integer(-1);
    integer(-1);
    integer(0);
    out_ += "tb";
  }

  // _reconstruct(ndarray, (0,), b"b") with the state (1, shape, dtype, False, bytes). numpy.core is
  // what numpy 1 has; numpy 2 keeps these names there for old files.
  void array(const PickleArray& value) {
    const auto count = static_cast<std::uint64_t>(value.view().element_count());
    NEEDLE_CHECK(value.bytes.size() == count * dtype_size(value.dtype),
                 "an array of {} elements of {} has {} bytes", count, kDtypeNames.name(value.dtype),
                 value.bytes.size());
    global("numpy.core.multiarray", "_reconstruct");
    global("numpy", "ndarray");
    integer(0);
    out_ += '\x85';
    bytes("b");
    out_ += "\x87R(";
    integer(1);
    out_ += '(';
    for (const std::int64_t size : value.shape) {
      integer(size);
    }
    out_ += 't';
    dtype(value.dtype);
    out_ += '\x89';
    bytes(value.bytes);
    out_ += "tb";
  }

  void list(const PickleValue::List& items, int depth) {
    out_ += "](";
    for (const PickleValue& item : items) {
      write(item, depth + 1);
    }
    out_ += 'e';
  }

  void dict(const PickleValue::Dict& items, int depth) {
    out_ += "}(";
    for (const auto& [key, item] : items) {
      text(key);
      write(item, depth + 1);
    }
    out_ += 'u';
  }

  void write(const PickleValue& value, int depth) {
    NEEDLE_CHECK(depth <= kMaxDepth, "values are nested more than {} deep", kMaxDepth);
    if (const auto* boolean = std::get_if<bool>(&value.value)) {
      out_ += *boolean ? '\x88' : '\x89';
    } else if (const auto* number = std::get_if<std::int64_t>(&value.value)) {
      integer(*number);
    } else if (const auto* fraction = std::get_if<double>(&value.value)) {
      real(*fraction);
    } else if (const auto* string = std::get_if<std::string>(&value.value)) {
      text(*string);
    } else if (const auto* items = std::get_if<PickleValue::List>(&value.value)) {
      list(*items, depth);
    } else if (const auto* entries = std::get_if<PickleValue::Dict>(&value.value)) {
      dict(*entries, depth);
    } else if (const auto* tensor = std::get_if<PickleArray>(&value.value)) {
      array(*tensor);
    } else {
      out_ += 'N';
    }
  }

  std::string out_;
};

}  // namespace

std::string write_pickle(const PickleValue& value) { return PickleWriter().finish(value); }

}  // namespace needle
