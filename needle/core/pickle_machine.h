// The stack machine behind read_pickle: runs the harmless opcodes over an arena of nodes, never
// over Python objects.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "needle/core/safetensors.h"

namespace needle::internal {

using NodeId = std::uint32_t;

// The names that a pickled numpy array mentions; no other global is let in.
enum class PickleGlobal : std::uint8_t {
  kReconstruct,
  kScalar,
  kNdarray,
  kDtype,
  kFromBuffer,
  kEncode,
  kBytes
};

enum class PickleKind : std::uint8_t {
  kNone,
  kBool,
  kInt,
  kFloat,
  kText,
  kBytes,
  kTuple,
  kList,
  kDict,
  kGlobal,
  kDtype,      // numpy.dtype; `ready` once it has its byte order
  kBareArray,  // _reconstruct's result before BUILD gives it a state
  kArray
};
std::string_view kind_name(PickleKind kind);

struct PickleNode {
  PickleKind kind = PickleKind::kNone;
  PickleGlobal global = PickleGlobal::kBytes;
  Dtype dtype = Dtype::kF16;
  bool ready = false;
  bool big_endian = false;
  std::uint32_t slot = 0;    // of a container or an array
  std::int64_t integer = 0;  // bool and int
  double real = 0.0;
  std::string_view text = {};  // text and bytes: in the input or among the machine's own strings
};

struct PickledArray {
  Dtype dtype = Dtype::kF16;
  bool big_endian = false;
  bool column_major = false;
  std::vector<std::int64_t> shape;
  std::string_view bytes;  // exactly what shape and dtype need
};

// Single use. `input` must outlive the machine. Memory is bounded by a small multiple of the
// input's size.
class PickleMachine {
 public:
  explicit PickleMachine(std::span<const std::byte> input);

  // Runs to STOP and returns what the pickle holds. Throws FormatError("byte 12: ...").
  NodeId run();

  const PickleNode& node(NodeId id) const { return nodes_[id]; }
  // Items of a tuple or list; keys and values in turn of a dict.
  std::span<const NodeId> items(const PickleNode& container) const {
    return containers_[container.slot];
  }
  const PickledArray& array(const PickleNode& node) const { return arrays_[node.slot]; }

 private:
  [[noreturn]] void fail(std::string_view reason) const;

  std::string_view take(std::uint64_t count);
  std::string_view take_line();
  std::uint64_t take_unsigned(std::size_t width);
  std::string_view take_counted(std::size_t width) { return take(take_unsigned(width)); }

  NodeId add(PickleNode node);
  void push(const PickleNode& node) { stack_.push_back(add(node)); }
  void push_text(std::string_view text);
  void push_container(PickleKind kind, std::vector<NodeId> items);
  void push_array(PickledArray array);
  NodeId pop();
  NodeId top() const;
  PickleNode& top_of(PickleKind kind, std::string_view operation);
  std::vector<NodeId> pop_to_mark();
  std::vector<NodeId> pop_many(std::size_t count);
  std::string_view own(std::string text);

  bool step(unsigned char opcode);  // false at STOP
  bool step_number(unsigned char opcode);
  bool step_string(unsigned char opcode);
  bool step_container(unsigned char opcode);
  bool step_memo(unsigned char opcode);
  void remember(std::uint64_t key);
  void recall(std::uint64_t key);
  void extend(PickleKind kind, std::vector<NodeId> items);
  std::int64_t parse_decimal(std::string_view text) const;
  std::int64_t parse_long(std::string_view bytes) const;
  std::string decode_raw_escapes(std::string_view line) const;

  void push_global(std::string_view module, std::string_view name);
  void reduce();
  void build();
  void make_dtype(std::span<const NodeId> args);
  void make_array_from_buffer(std::span<const NodeId> args);
  void make_scalar(std::span<const NodeId> args);
  void encode_latin1(std::span<const NodeId> args);
  void set_dtype_state(NodeId dtype, std::span<const NodeId> state);
  void set_array_state(NodeId array, std::span<const NodeId> state);
  std::vector<std::int64_t> shape_of(NodeId id) const;
  void check_array(const PickledArray& array) const;

  std::span<const std::byte> input_;
  std::size_t position_ = 0;
  std::size_t opcode_position_ = 0;
  std::vector<PickleNode> nodes_;
  std::vector<std::vector<NodeId>> containers_;
  std::vector<PickledArray> arrays_;
  std::vector<NodeId> stack_;
  std::vector<std::size_t> marks_;  // stack heights
  std::unordered_map<std::uint64_t, NodeId> memo_;
  std::deque<std::string> owned_;
  std::size_t owned_bytes_ = 0;
};

}  // namespace needle::internal
