// One request's state: the prompt's cross keys and values and the decoder's own, all made before
// the first token.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/int_kv.h"
#include "needle/runtime/kv_cache.h"
#include "needle/runtime/layers.h"

namespace needle::runtime {

struct Request {
  // `prompt_tokens` T, `max_tokens`: the decoder tokens that will be fed at most.
  Request(const Kernels& kernels, const Model& model, std::int64_t prompt_tokens,
          std::int64_t max_tokens);

  std::int64_t position = 0;  // decoder tokens fed so far
  std::int64_t max_tokens;
  std::int64_t prompt_tokens;

  std::vector<KvCache> self;              // a layer each
  bool int_attention = false;             // over the prompt
  std::vector<KvCache> cross;             // a layer each: either these
  std::vector<IntKvCache> cross_int;      // or these
  std::vector<std::uint8_t> prompt_mask;  // [T], 0 = padding; empty if there is none
  std::shared_ptr<const RopeTable> rope;  // of the decoder's positions
};

}  // namespace needle::runtime
