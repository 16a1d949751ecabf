// Kernels of the tests' device, and work that is recorded.
#include "tests/train/walled_kernels.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <ATen/accelerator/Graph.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <torch/library.h>

#include "tests/train/walled_memory.h"

namespace walled {

// Work that was recorded: operators with their arguments and results as they were.
struct Step {
  c10::OperatorHandle op;
  std::vector<c10::IValue> arguments;
  std::vector<c10::IValue> results;
};
struct Recording {
  std::vector<Step> steps;
};

bool is_walled(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kType;
}

at::Tensor as_host(const at::Tensor& tensor) {
  auto* const data = static_cast<char*>(const_cast<void*>(tensor.storage().data()));
  const auto options = tensor.options().device(c10::kCPU).pinned_memory(false);
  if (data == nullptr) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  return at::from_blob(
      data + tensor.storage_offset() * static_cast<std::int64_t>(tensor.element_size()),
      tensor.sizes(), tensor.strides(), options);
}

namespace {

at::Tensor empty_like_host(const at::Tensor& host, c10::Device device) {
  return at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
}

std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
  if (value.isTensor()) {
    return {value.toTensor()};
  }
  if (value.isTensorList()) {
    return value.toTensorVector();
  }
  std::vector<at::Tensor> found;
  if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector()) {
      found.push_back(one.value_or(at::Tensor()));
    }
  }
  return found;
}

// `value` with every walled tensor replaced.
template <typename Replace>
c10::IValue replace_tensors(const c10::IValue& value, const Replace& replace) {
  if (value.isTensor()) {
    return is_walled(value.toTensor()) ? replace(value.toTensor()) : value;
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& one : value.toTensorVector()) {
      list.push_back(is_walled(one) ? replace(one) : one);
    }
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorVector()) {
      list.push_back(one && is_walled(*one) ? std::optional<at::Tensor>(replace(*one)) : one);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == kType) {
    return c10::Device(c10::kCPU);
  }
  if (value.isGenerator() && value.toGenerator().device().type() == kType) {
    return c10::IValue();
  }
  return value;
}

// The device of all walled arguments; a scalar of the CPU may be among them, nothing else of it.
c10::Device check_devices(const c10::OperatorHandle& op,
                          const std::vector<c10::IValue>& arguments) {
  std::optional<c10::Device> device;
  for (const c10::IValue& argument : arguments) {
    for (const at::Tensor& tensor : tensors_of(argument)) {
      if (!tensor.defined() || (tensor.device().is_cpu() && tensor.dim() == 0)) {
        continue;
      }
      TORCH_CHECK(is_walled(tensor), "walled device: ", op.schema(), " was given a tensor on ",
                  tensor.device().str());
      TORCH_CHECK(!device || *device == tensor.device(), "walled device: ", op.schema(),
                  " was given tensors of two devices");
      device = tensor.device();
    }
    if (!device && argument.isDevice() && argument.toDevice().type() == kType) {
      device = argument.toDevice();
    }
  }
  return device.value_or(c10::Device(kType, current_device));
}

const at::Tensor& resize_tensor(const at::Tensor& self, c10::IntArrayRef size,
                                std::optional<c10::MemoryFormat> format);

// Runs the CPU's kernel over `arguments`. `practice`: on copies, to learn what the results look
// like. An empty tensor that the kernel writes to may grow ("out").
std::vector<c10::IValue> run_on_host(const c10::OperatorHandle& op,
                                     const std::vector<c10::IValue>& arguments, Passage& passage,
                                     bool practice) {
  torch::jit::Stack stack;
  std::vector<std::pair<at::Tensor, at::Tensor>> may_grow;
  for (const c10::IValue& argument : arguments) {
    stack.push_back(replace_tensors(argument, [&](const at::Tensor& tensor) {
      if (tensor.numel() == 0) {
        const auto host = at::empty(tensor.sizes(), tensor.options().device(c10::kCPU));
        may_grow.emplace_back(tensor, host);
        return host;
      }
      passage.open(tensor);
      const at::Tensor host = as_host(tensor);
      return practice ? host.clone() : host;
    }));
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  for (const auto& [tensor, host] : may_grow) {
    if (host.numel() > 0) {
      resize_tensor(tensor, host.sizes(), {});
      if (!practice) {
        passage.open(tensor);
        as_host(tensor).copy_(host);
      }
    }
  }
  return {stack.begin(), stack.end()};
}

// The argument that result `index` is, by the schema: "(a!)". -1: it is a new tensor.
std::ptrdiff_t aliased_argument(const c10::FunctionSchema& schema, std::size_t index) {
  const c10::AliasInfo* const result = schema.returns()[index].alias_info();
  if (result == nullptr) {
    return -1;
  }
  TORCH_CHECK(result->isWrite(), "walled device: ", schema, " returns a view");
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::AliasInfo* const argument = schema.arguments()[i].alias_info();
    if (argument != nullptr && *argument == *result) {
      return static_cast<std::ptrdiff_t>(i);
    }
  }
  TORCH_CHECK(false, "walled device: ", schema, " returns an unknown alias");
}

void any_operator(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const std::size_t count = schema.arguments().size();
  const std::vector<c10::IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(count),
                                           stack->end());
  torch::jit::drop(*stack, count);
  const c10::Device device = check_devices(op, arguments);
  Passage passage;
  ++counts.kernels;
  static const char* const fault = std::getenv("WALLED_FAULT");
  TORCH_CHECK(fault == nullptr || counts.kernels < std::atoll(fault), "walled device: kernel ",
              fault, " failed");
  const auto host = run_on_host(op, arguments, passage, /*practice=*/recording != nullptr);
  std::vector<c10::IValue> results;
  for (std::size_t i = 0; i < host.size(); ++i) {
    if (const std::ptrdiff_t same = aliased_argument(schema, i); same >= 0) {
      results.push_back(arguments[static_cast<std::size_t>(same)]);
      continue;
    }
    const auto bring_back = [&](const at::Tensor& tensor) {
      const at::Tensor made = empty_like_host(tensor, device);
      if (recording == nullptr) {
        passage.open(made);
        as_host(made).copy_(tensor);
      }
      return made;
    };
    if (host[i].isTensor() && host[i].toTensor().defined()) {
      results.emplace_back(bring_back(host[i].toTensor()));
    } else if (host[i].isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : host[i].toTensorVector()) {
        list.push_back(bring_back(one));
      }
      results.emplace_back(list);
    } else {
      TORCH_CHECK(recording == nullptr || host[i].isTensor() || host[i].isNone(),
                  "walled device: a value for the host while work is recorded");
      results.push_back(host[i]);
    }
  }
  if (recording != nullptr) {
    recording->steps.push_back({.op = op, .arguments = arguments, .results = results});
  }
  stack->insert(stack->end(), results.begin(), results.end());
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout> /*layout*/, std::optional<c10::Device> device,
                 std::optional<bool> /*pin*/, std::optional<c10::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, c10::GetAllocator(kType),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout> /*layout*/, std::optional<c10::Device> device,
                         std::optional<bool> /*pin*/) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// What was there stays, as far as it fits.
const at::Tensor& resize_tensor(const at::Tensor& self, c10::IntArrayRef size,
                                std::optional<c10::MemoryFormat> /*format*/) {
  const std::size_t bytes =
      (static_cast<std::size_t>(c10::multiply_integers(size) + self.storage_offset())) *
      self.element_size();
  TORCH_CHECK(recording == nullptr || self.numel() == 0 || bytes <= self.storage().nbytes(),
              "walled device: memory grows while work is recorded");
  if (bytes > self.storage().nbytes()) {
    const c10::DeviceGuard guard(self.device());
    const at::Tensor larger =
        empty({static_cast<std::int64_t>(bytes)}, c10::kByte, {}, self.device(), {}, {});
    if (self.storage().nbytes() > 0) {
      Passage passage;
      passage.open(self);
      passage.open(larger);
      std::memcpy(const_cast<void*>(larger.storage().data()), self.storage().data(),
                  self.storage().nbytes());
    }
    c10::StorageImpl* const storage = self.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(
        std::move(larger.storage().unsafeGetStorageImpl()->mutable_data_ptr()));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, std::int64_t offset,
                        c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

void refuse_while_recording(const char* what) {
  TORCH_CHECK(recording == nullptr, "walled device: ", what,
              " is not permitted while work is recorded");
}

// Between the devices' memory and the host's, and within it.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  Passage passage;
  if (is_walled(from) && is_walled(to)) {
    static const auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    TORCH_CHECK(from.device() == to.device() || recording == nullptr);
    const std::vector<c10::IValue> arguments{to, from, false};
    ++counts.kernels;
    if (recording != nullptr) {
      recording->steps.push_back({.op = copy, .arguments = arguments, .results = {}});
    } else {
      passage.open(from);
      passage.open(to);
      as_host(to).copy_(as_host(from));
    }
  } else if (is_walled(to)) {
    refuse_while_recording("a copy from the host");
    const bool waits = !(non_blocking && from.is_pinned());
    ++(waits ? counts.waiting_copies_in : counts.copies_in);
    passage.open(to);
    as_host(to).copy_(from);
  } else {
    refuse_while_recording("a copy to the host");
    passage.open(from);
    if (non_blocking && to.is_pinned() && to.is_contiguous()) {
      ++counts.copies_out;
      copy_later(to, as_host(from).clone());
    } else {
      ++counts.waiting_copies_out;
      arrive(copies_begun());
      const at::Tensor host = as_host(from);
      to.copy_(host);
    }
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  refuse_while_recording("reading a value");
  Passage passage;
  ++counts.waiting_copies_out;
  arrive(copies_begun());
  passage.open(self);
  return as_host(self).item();
}

// The library's fused attention has kernels for devices that it knows; this one takes the plain
// one.
std::int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                             bool) {
  return static_cast<std::int64_t>(sdp::SDPBackend::math);
}

// Recorded work.
struct WalledGraph final : at::GraphImplInterface {
  explicit WalledGraph(const at::GraphImplArgs& /*arguments*/) {}
  void capture_begin(c10::MempoolId_t /*pool*/, at::GraphCaptureMode /*mode*/) override {
    const std::lock_guard lock(gate());
    TORCH_CHECK(recording == nullptr, "walled device: recording already");
    work_.steps.clear();
    recording = &work_;
  }
  void capture_end() override {
    const std::lock_guard lock(gate());
    recording = nullptr;
  }
  void instantiate() override {}
  void replay() override {
    Passage passage;
    refuse_while_recording("replaying");
    ++counts.replays;
    for (const Step& step : work_.steps) {
      Passage inner;
      ++counts.kernels;
      const auto host = run_on_host(step.op, step.arguments, inner, /*practice=*/false);
      for (std::size_t i = 0; i < step.results.size(); ++i) {
        if (aliased_argument(step.op.schema(), i) >= 0) {
          continue;
        }
        const auto to = tensors_of(step.results[i]), from = tensors_of(host[i]);
        for (std::size_t k = 0; k < to.size(); ++k) {
          if (to[k].defined()) {
            inner.open(to[k]);
            as_host(to[k]).copy_(from[k]);
          }
        }
      }
    }
  }
  void reset() override { work_.steps.clear(); }
  c10::MempoolId_t pool() const override { return {0, 0}; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string& /*path*/) override {}

 private:
  Recording work_;
};

}  // namespace
}  // namespace walled

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &walled::plain_attention)
}  // namespace at::native

namespace at {
C10_REGISTER_CLASS(GraphImplRegistry, WALLED, walled::WalledGraph)  // by the name of the device
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&walled::any_operator>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", walled::empty);
  m.impl("empty_strided", walled::empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", walled::resize_tensor);
  m.impl("set_.source_Storage_storage_offset", walled::set_storage);
  m.impl("_copy_from", walled::copy_from);
  m.impl("_copy_from_and_resize", walled::copy_from_and_resize);
  m.impl("_local_scalar_dense", walled::local_scalar);
}
