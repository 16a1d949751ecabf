// A module whose parameters can go to any device.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <torch/torch.h>

namespace needle {

// torch::nn::Module moves a parameter by exchanging its memory, which LibTorch refuses between the
// CPU and a plug-in's device (PrivateUse1). Here such a parameter becomes another tensor, in the
// module and in its member.
class ParameterModule : public torch::nn::Module {
 public:
  using torch::nn::Module::to;
  // Whoever holds a parameter by itself (an optimiser) asks for it again after the model has moved.
  void to(torch::Device device, bool non_blocking = false) override;

 protected:
  // As register_parameter; `member` is where this module keeps it.
  torch::Tensor add_parameter(std::string name, torch::Tensor& member, torch::Tensor value);

 private:
  std::vector<std::pair<std::string, torch::Tensor*>> members_;
};

}  // namespace needle
