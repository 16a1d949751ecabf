// A mode is a scope, not a pair of calls that an exception can split.
#pragma once

#include <torch/torch.h>

namespace needle {

// Evaluation mode and no gradients (in this thread) until the end of the scope. Keeps a reference
// to `module`.
class EvalScope {
 public:
  explicit EvalScope(torch::nn::Module& module)
      : module_(module), was_training_(module.is_training()) {
    module_.eval();
  }
  ~EvalScope() { module_.train(was_training_); }
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;

 private:
  torch::NoGradGuard no_grad_;
  torch::nn::Module& module_;
  bool was_training_;
};

}  // namespace needle
