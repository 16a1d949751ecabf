// The few names and calls of a pickled numpy array that PickleMachine understands.
#include <array>
#include <limits>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/pickle_machine.h"
#include "needle/core/pickle_text.h"

namespace needle::internal {
namespace {

constexpr std::size_t kMaxRank = 64;  // as numpy 2

struct AllowedName {
  std::string_view module;
  std::string_view name;
  PickleGlobal global;
};
// numpy 2 moved numpy.core to numpy._core. Protocol 2 has no opcode for bytes and calls the last
// three instead.
constexpr std::array kAllowedNames = {
    AllowedName{"numpy.core.multiarray", "_reconstruct", PickleGlobal::kReconstruct},
    AllowedName{"numpy._core.multiarray", "_reconstruct", PickleGlobal::kReconstruct},
    AllowedName{"numpy.core.multiarray", "scalar", PickleGlobal::kScalar},
    AllowedName{"numpy._core.multiarray", "scalar", PickleGlobal::kScalar},
    AllowedName{"numpy", "ndarray", PickleGlobal::kNdarray},
    AllowedName{"numpy", "dtype", PickleGlobal::kDtype},
    AllowedName{"numpy.core.numeric", "_frombuffer", PickleGlobal::kFromBuffer},
    AllowedName{"numpy._core.numeric", "_frombuffer", PickleGlobal::kFromBuffer},
    AllowedName{"_codecs", "encode", PickleGlobal::kEncode},
    AllowedName{"__builtin__", "bytes", PickleGlobal::kBytes},
    AllowedName{"builtins", "bytes", PickleGlobal::kBytes}};

}  // namespace

void PickleMachine::push_global(std::string_view module, std::string_view name) {
  for (const AllowedName& allowed : kAllowedNames) {
    if (allowed.module == module && allowed.name == name) {
      push({.kind = PickleKind::kGlobal, .global = allowed.global});
      return;
    }
  }
  fail(
      format("refers to {}.{}: a checkpoint needs numpy arrays and plain values alone, and "
             "nothing else is run",
             shown(module), shown(name)));
}

void PickleMachine::reduce() {
  const PickleNode args_node = nodes_[pop()];
  const PickleNode callee = nodes_[pop()];
  if (args_node.kind != PickleKind::kTuple) {
    fail("a call without a tuple of arguments");
  }
  if (callee.kind != PickleKind::kGlobal) {
    fail(format("calls {}", kind_name(callee.kind)));
  }
  const std::vector<NodeId> args = containers_[args_node.slot];
  switch (callee.global) {
    case PickleGlobal::kReconstruct:
      // Always (ndarray, (0,), b"b"); the state that follows says what the array is.
      if (args.size() != 3 || nodes_[args[0]].kind != PickleKind::kGlobal ||
          nodes_[args[0]].global != PickleGlobal::kNdarray ||
          nodes_[args[1]].kind != PickleKind::kTuple ||
          nodes_[args[2]].kind != PickleKind::kBytes) {
        fail("_reconstruct makes something other than a numpy.ndarray");
      }
      push({.kind = PickleKind::kBareArray});
      return;
    case PickleGlobal::kDtype:
      return make_dtype(args);
    case PickleGlobal::kFromBuffer:
      return make_array_from_buffer(args);
    case PickleGlobal::kScalar:
      return make_scalar(args);
    case PickleGlobal::kEncode:
      return encode_latin1(args);
    case PickleGlobal::kBytes:
      if (!args.empty()) {
        fail("bytes() with arguments");
      }
      push({.kind = PickleKind::kBytes});
      return;
    case PickleGlobal::kNdarray:
      break;
  }
  fail("calls numpy.ndarray");
}

void PickleMachine::build() {
  const PickleNode state = nodes_[pop()];
  const NodeId target = top();
  const PickleKind kind = nodes_[target].kind;
  if (state.kind != PickleKind::kTuple ||
      (kind != PickleKind::kDtype && kind != PickleKind::kBareArray)) {
    fail(format("BUILD gives {} a state of {}", kind_name(kind), kind_name(state.kind)));
  }
  const std::vector<NodeId> items = containers_[state.slot];
  if (kind == PickleKind::kDtype) {
    set_dtype_state(target, items);
  } else {
    set_array_state(target, items);
  }
}

// numpy.dtype("f2", False, True): type, align, copy.
void PickleMachine::make_dtype(std::span<const NodeId> args) {
  if (args.empty() || args.size() > 3 || nodes_[args[0]].kind != PickleKind::kText) {
    fail("numpy.dtype with unknown arguments");
  }
  const std::string_view name = nodes_[args[0]].text;
  PickleNode node{.kind = PickleKind::kDtype};
  if (name == "f2") {
    node.dtype = Dtype::kF16;
  } else if (name == "f4") {
    node.dtype = Dtype::kF32;
  } else if (name == "f8") {
    node.dtype = Dtype::kF64;
  } else {
    fail(format("an array of dtype \"{}\", expected float16, float32 or float64", shown(name)));
  }
  push(node);
}

// (3, byte order, None, None, None, -1, -1, 0): no fields, no sub-array, no metadata.
void PickleMachine::set_dtype_state(NodeId dtype, std::span<const NodeId> state) {
  const bool known = state.size() == 8 && nodes_[state[0]].kind == PickleKind::kInt &&
                     nodes_[state[0]].integer == 3 && nodes_[state[1]].kind == PickleKind::kText &&
                     nodes_[state[2]].kind == PickleKind::kNone &&
                     nodes_[state[3]].kind == PickleKind::kNone &&
                     nodes_[state[4]].kind == PickleKind::kNone;
  if (!known || nodes_[dtype].ready) {
    fail("a dtype with a state of another version or with fields");
  }
  const std::string_view order = nodes_[state[1]].text;
  if (order != "<" && order != ">") {
    fail(format("a dtype of byte order \"{}\", expected < or >", shown(order)));
  }
  nodes_[dtype].big_endian = order == ">";
  nodes_[dtype].ready = true;
}

// (1, shape, dtype, is_fortran, bytes)
void PickleMachine::set_array_state(NodeId array_id, std::span<const NodeId> state) {
  if (state.size() != 5 || nodes_[state[0]].kind != PickleKind::kInt ||
      nodes_[state[0]].integer != 1) {
    fail("an array with a state of another version");
  }
  const PickleNode& dtype = nodes_[state[2]];
  const PickleNode& fortran = nodes_[state[3]];
  const PickleNode& bytes = nodes_[state[4]];
  if (dtype.kind != PickleKind::kDtype || !dtype.ready) {
    fail("an array without a complete dtype");
  }
  if (fortran.kind != PickleKind::kBool && fortran.kind != PickleKind::kInt) {
    fail("an array whose memory order is not a bool");
  }
  if (bytes.kind != PickleKind::kBytes) {
    fail(format("an array whose data is {}, expected bytes", kind_name(bytes.kind)));
  }
  PickledArray array{.dtype = dtype.dtype,
                     .big_endian = dtype.big_endian,
                     .column_major = fortran.integer != 0,
                     .shape = shape_of(state[1]),
                     .bytes = bytes.text};
  check_array(array);
  nodes_[array_id].kind = PickleKind::kArray;
  nodes_[array_id].slot = static_cast<std::uint32_t>(arrays_.size());
  arrays_.push_back(std::move(array));
}

// _frombuffer(bytes, dtype, shape, order), protocol 5
void PickleMachine::make_array_from_buffer(std::span<const NodeId> args) {
  if (args.size() != 4 || nodes_[args[0]].kind != PickleKind::kBytes ||
      nodes_[args[1]].kind != PickleKind::kDtype || !nodes_[args[1]].ready ||
      nodes_[args[3]].kind != PickleKind::kText) {
    fail("_frombuffer with unknown arguments");
  }
  const PickleNode& dtype = nodes_[args[1]];
  const std::string_view order = nodes_[args[3]].text;
  if (order != "C" && order != "F") {
    fail(format("_frombuffer with the memory order \"{}\"", shown(order)));
  }
  push_array({.dtype = dtype.dtype,
              .big_endian = dtype.big_endian,
              .column_major = order == "F",
              .shape = shape_of(args[2]),
              .bytes = nodes_[args[0]].text});
}

// scalar(dtype, bytes): numpy.float16(1.0) and the like, taken as an array without dimensions
void PickleMachine::make_scalar(std::span<const NodeId> args) {
  if (args.size() != 2 || nodes_[args[0]].kind != PickleKind::kDtype || !nodes_[args[0]].ready ||
      nodes_[args[1]].kind != PickleKind::kBytes) {
    fail("a numpy scalar with unknown arguments");
  }
  const PickleNode& dtype = nodes_[args[0]];
  push_array({.dtype = dtype.dtype,
              .big_endian = dtype.big_endian,
              .column_major = false,
              .shape = {},
              .bytes = nodes_[args[1]].text});
}

// _codecs.encode(text, "latin1"): how protocols 0 to 2 write bytes
void PickleMachine::encode_latin1(std::span<const NodeId> args) {
  if (args.size() != 2 || nodes_[args[0]].kind != PickleKind::kText ||
      nodes_[args[1]].kind != PickleKind::kText || nodes_[args[1]].text != "latin1") {
    fail("_codecs.encode with another codec than latin1");
  }
  const std::string_view text = nodes_[args[0]].text;
  std::string bytes;
  bytes.reserve(text.size());
  std::uint32_t code = 0;
  for (std::size_t position = 0; position < text.size();) {
    next_code_point(text, position, code);  // push_text checked it
    if (code > 0xff) {
      fail("_codecs.encode of a character beyond latin1");
    }
    bytes += static_cast<char>(code);
  }
  push({.kind = PickleKind::kBytes, .text = own(std::move(bytes))});
}

std::vector<std::int64_t> PickleMachine::shape_of(NodeId id) const {
  const PickleNode& tuple = nodes_[id];
  if (tuple.kind != PickleKind::kTuple) {
    fail(format("an array whose shape is {}, expected a tuple", kind_name(tuple.kind)));
  }
  const std::vector<NodeId>& sizes = containers_[tuple.slot];
  if (sizes.size() > kMaxRank) {
    fail(format("an array of {} dimensions, at most {} are read", sizes.size(), kMaxRank));
  }
  std::vector<std::int64_t> shape;
  for (const NodeId size : sizes) {
    if (nodes_[size].kind != PickleKind::kInt || nodes_[size].integer < 0) {
      fail("an array with a dimension that is not an integer of at least 0");
    }
    shape.push_back(nodes_[size].integer);
  }
  return shape;
}

void PickleMachine::check_array(const PickledArray& array) const {
  const std::uint64_t elements = array.bytes.size() / dtype_size(array.dtype);
  bool fits = array.bytes.size() % dtype_size(array.dtype) == 0;
  bool empty = false;
  std::uint64_t product = 1;
  for (const std::int64_t size : array.shape) {
    if (size == 0) {
      empty = true;
    } else if (product >
               std::numeric_limits<std::int64_t>::max() / static_cast<std::uint64_t>(size)) {
      fits = false;
      break;
    } else {
      product *= static_cast<std::uint64_t>(size);
    }
  }
  if (!fits || elements != (empty ? 0 : product)) {
    fail(format("an array with {} bytes of {}, its shape needs another number", array.bytes.size(),
                kDtypeNames.name(array.dtype)));
  }
}

}  // namespace needle::internal
