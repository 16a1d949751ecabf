// Fake quantisation as a scope, so that an exception cannot leave it switched on.
#pragma once

#include "needle/model/needle.h"

namespace needle {

class FakeQuantScope {  // until its end, `model` computes through quantised weights
 public:
  FakeQuantScope(NeedleImpl& model, FakeQuant kernels, FakeQuant embedding)
      : model_(model), kernels_(model.fake_quant()), embedding_(model.embedding_fake_quant()) {
    model_.set_fake_quant(kernels, embedding);
  }
  ~FakeQuantScope() { model_.set_fake_quant(kernels_, embedding_); }
  FakeQuantScope(const FakeQuantScope&) = delete;
  FakeQuantScope& operator=(const FakeQuantScope&) = delete;

 private:
  NeedleImpl& model_;
  FakeQuant kernels_;
  FakeQuant embedding_;
};

}  // namespace needle
