// The engine that a model would be served with, for the answers of validations.
#pragma once

#include <memory>

#include "needle/decode/engine.h"
#include "needle/model/needle.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

// Over a temporary INT4 file, gone once the engine has mapped it. One thread a request. Throws
// Error if a weight is not finite, FileError if the system refuses.
std::shared_ptr<const Engine> exported_engine(const Needle& model, const Tokenizer& tokenizer,
                                              const PromptConfig& prompt);

}  // namespace needle
