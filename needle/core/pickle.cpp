#include "needle/core/pickle.h"

#include <algorithm>
#include <unordered_set>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/pickle_machine.h"

namespace needle {
namespace {

using internal::kind_name;
using internal::PickledArray;
using internal::PickleKind;
using internal::PickleMachine;
using internal::PickleNode;

constexpr int kMaxDepth = 100;
constexpr std::size_t kMaxValues = 200'000;

// Little-endian and row-major, whatever the file had.
std::string normalized(const PickledArray& array) {
  const std::size_t width = dtype_size(array.dtype);
  std::string bytes(array.bytes);
  if (array.big_endian) {
    for (std::size_t i = 0; i < bytes.size(); i += width) {
      std::reverse(bytes.begin() + static_cast<std::ptrdiff_t>(i),
                   bytes.begin() + static_cast<std::ptrdiff_t>(i + width));
    }
  }
  const std::size_t rank = array.shape.size();
  if (!array.column_major || rank < 2 || bytes.empty()) {
    return bytes;
  }
  std::vector<std::size_t> strides(rank);  // in elements, of the column-major source
  std::size_t stride = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) {
    strides[axis] = stride;
    stride *= static_cast<std::size_t>(array.shape[axis]);
  }
  std::string rows(bytes.size(), '\0');
  std::vector<std::size_t> index(rank, 0);
  std::size_t source = 0;
  for (std::size_t target = 0; target < bytes.size(); target += width) {
    rows.replace(target, width, bytes, source * width, width);
    for (std::size_t axis = rank; axis > 0; --axis) {  // the next index in row-major order
      const std::size_t a = axis - 1;
      source += strides[a];
      if (++index[a] < static_cast<std::size_t>(array.shape[a])) {
        break;
      }
      source -= strides[a] * index[a];
      index[a] = 0;
    }
  }
  return rows;
}

// Copies the machine's graph into a tree. A graph may contain itself or share a list a thousand
// times over: depth, number of values and copied bytes are bounded.
class TreeBuilder {
 public:
  TreeBuilder(const PickleMachine& machine, std::size_t input_bytes)
      : machine_(machine), bytes_left_(4 * input_bytes) {}

  PickleValue build(internal::NodeId id, int depth = 0) {
    if (depth > kMaxDepth) {
      throw FormatError(
          format("values are nested more than {} deep, or contain themselves", kMaxDepth));
    }
    if (++values_ > kMaxValues) {
      throw FormatError(format("the file unfolds to more than {} values", kMaxValues));
    }
    const PickleNode& node = machine_.node(id);
    switch (node.kind) {
      case PickleKind::kNone:
        return {std::monostate()};
      case PickleKind::kBool:
        return {node.integer != 0};
      case PickleKind::kInt:
        return {node.integer};
      case PickleKind::kFloat:
        return {node.real};
      case PickleKind::kText:
        spend(node.text.size());
        return {std::string(node.text)};
      case PickleKind::kTuple:
      case PickleKind::kList:
        return {build_list(node, depth)};
      case PickleKind::kDict:
        return {build_dict(node, depth)};
      case PickleKind::kArray: {
        const PickledArray& array = machine_.array(node);
        spend(array.bytes.size());
        return {
            PickleArray{.dtype = array.dtype, .shape = array.shape, .bytes = normalized(array)}};
      }
      case PickleKind::kBytes:
      case PickleKind::kGlobal:
      case PickleKind::kDtype:
      case PickleKind::kBareArray:
        break;
    }
    throw FormatError(
        format("a value is {}, expected plain data or a numpy array", kind_name(node.kind)));
  }

 private:
  PickleValue::List build_list(const PickleNode& node, int depth) {
    PickleValue::List list;
    for (const internal::NodeId item : machine_.items(node)) {
      list.push_back(build(item, depth + 1));
    }
    return list;
  }

  PickleValue::Dict build_dict(const PickleNode& node, int depth) {
    PickleValue::Dict dict;
    std::unordered_set<std::string_view> keys;
    const auto items = machine_.items(node);
    for (std::size_t i = 0; i < items.size(); i += 2) {
      const std::string_view key = machine_.node(items[i]).text;
      if (!keys.insert(key).second) {
        throw FormatError(format("a dict has the key \"{}\" twice", key));
      }
      spend(key.size());
      dict.push_back({.key = std::string(key), .value = build(items[i + 1], depth + 1)});
    }
    return dict;
  }

  void spend(std::size_t bytes) {
    if (bytes > bytes_left_) {
      throw FormatError("the file unfolds to several times its size");
    }
    bytes_left_ -= bytes;
  }

  const PickleMachine& machine_;
  std::size_t bytes_left_;
  std::size_t values_ = 0;
};

}  // namespace

TensorView PickleArray::view() const {
  return {.dtype = dtype,
          .shape = shape,
          .bytes = std::as_bytes(std::span(bytes.data(), bytes.size()))};
}

const PickleValue* PickleValue::find(std::string_view key) const {
  const Dict* const dict = std::get_if<Dict>(&value);
  if (dict == nullptr) {
    return nullptr;
  }
  const auto found = std::find_if(dict->begin(), dict->end(),
                                  [key](const auto& entry) { return entry.key == key; });
  return found == dict->end() ? nullptr : &found->value;
}

PickleValue read_pickle(std::span<const std::byte> bytes) {
  PickleMachine machine(bytes);
  const internal::NodeId root = machine.run();
  return TreeBuilder(machine, bytes.size()).build(root);
}

PickleValue read_pickle_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  try {
    return read_pickle(file.bytes());
  } catch (const FormatError& error) {
    throw FormatError(format("{}: not a pickle that can be read: {}", path, error.what()));
  }
}

}  // namespace needle
