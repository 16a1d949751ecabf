#include "needle/model/checkpoint.h"

#include <sstream>

#include "needle/core/error.h"

namespace needle {
namespace {

std::string shape_text(const torch::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes();
  return text.str();
}

}  // namespace

NamedTensors named_parameters(const Needle& model) {
  NamedTensors tensors;
  for (const auto& item : model->named_parameters()) {
    tensors[item.key()] = item.value();
  }
  return tensors;
}

NamedTensors copied_parameters(const Needle& model) {
  NamedTensors copies = named_parameters(model);
  for (auto& [name, tensor] : copies) {
    tensor = tensor.detach().clone();
  }
  return copies;
}

void assign_parameters(Needle& model, const NamedTensors& values, std::string_view where) {
  NamedTensors parameters = named_parameters(model);
  for (const auto& [name, parameter] : parameters) {
    const auto found = values.find(name);
    if (found == values.end()) {
      throw FormatError(format("{}: tensor '{}' {} is missing; the checkpoint is of another model",
                               where, name, shape_text(parameter)));
    }
    const torch::Tensor& value = found->second;
    if (value.sizes() != parameter.sizes()) {
      throw FormatError(
          format("{}: tensor '{}' has shape {}, the model expects {}; its config differs from the "
                 "checkpoint's",
                 where, name, shape_text(value), shape_text(parameter)));
    }
    if (!value.is_floating_point()) {
      throw FormatError(format("{}: tensor '{}' has type {}, expected floating-point numbers",
                               where, name, std::string(c10::toString(value.scalar_type()))));
    }
  }
  for (const auto& [name, value] : values) {
    if (!parameters.contains(name)) {
      throw FormatError(format("{}: tensor '{}' {} is not a parameter of this model", where, name,
                               shape_text(value)));
    }
  }
  const torch::NoGradGuard no_grad;
  for (auto& [name, parameter] : parameters) {
    parameter.copy_(values.find(name)->second);
  }
}

void save_model_parameters(const Needle& model, const std::filesystem::path& path,
                           const Metadata& metadata, StoredFloats stored) {
  NamedTensors tensors = named_parameters(model);
  for (auto& [name, tensor] : tensors) {
    tensor = stored == StoredFloats::kFloat16 ? to_float16(name, tensor, path.string())
                                              : tensor.detach().to(torch::kFloat32);
  }
  save_tensors(path, tensors, metadata);
}

void load_model_parameters(Needle& model, const std::filesystem::path& path) {
  assign_parameters(model, load_tensors(path), path.string());
}

}  // namespace needle
