#include "needle/model/parameter_module.h"

namespace needle {

torch::Tensor ParameterModule::add_parameter(std::string name, torch::Tensor& member,
                                             torch::Tensor value) {
  members_.emplace_back(name, &member);
  return register_parameter(std::move(name), std::move(value));
}

void ParameterModule::to(torch::Device device, bool non_blocking) {
  for (const auto& child : children()) {
    child->to(device, non_blocking);
  }
  const torch::NoGradGuard no_grad;
  for (const auto& [name, member] : members_) {
    if (member->device() == device) {
      continue;
    }
    auto moved = member->detach().to(device, non_blocking);
    if (torch::_has_compatible_shallow_copy_type(*member, moved)) {
      member->set_data(moved);
    } else {
      *member = moved.set_requires_grad(member->requires_grad());
      parameters_[name] = *member;
    }
  }
}

}  // namespace needle
