// The encoder, the contrastive head, and the start of a request: everything before the first step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "needle/runtime/layers.h"
#include "needle/runtime/model.h"
#include "needle/runtime/request.h"
#include "needle/text/special_tokens.h"

namespace needle::runtime {

// One byte a token, 0 = padding. Empty if nothing is padding.
std::vector<std::uint8_t> padding_mask(const ModelConfig& config, std::span<const TokenId> tokens);

// Asked between layers; true: give up. Empty: never.
using StopCheck = std::function<bool()>;

// embedding * sqrt(d) -> blocks -> final norm, [T, d]. `tokens`: at least one, all in the
// vocabulary. Empty if `stop` said so.
AlignedBuffer<float> encode(const Machine& machine, const Model& model,
                            std::span<const TokenId> tokens, const StopCheck& stop = {});

// Mean over non-pad positions, two dense layers, unit length: [contrastive_dim].
std::vector<float> embed(const Machine& machine, const Model& model,
                         std::span<const TokenId> tokens);

// Encodes the prompt and computes every decoder layer's cross keys and values. nullptr if `stop`
// said so.
std::unique_ptr<Request> start_request(const Machine& machine, const Model& model,
                                       std::span<const TokenId> prompt, std::int64_t max_tokens,
                                       const StopCheck& stop = {});

}  // namespace needle::runtime
