// A batch in parts: what to do when it does not fit into memory as a whole.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <string>

#include "needle/data/batch.h"

namespace needle {

// std::bad_alloc, an accelerator's c10::OutOfMemoryError, or what LibTorch's CPU allocator, oneDNN
// and MKL say.
bool is_out_of_memory(const std::exception& error);

// What the user can do when a pass over `rows` rows of a batch did not fit. `what`: the error's
// text.
std::string out_of_memory_advice(std::int64_t rows, const Batch& batch, const std::string& what);

// The first of most, half of it (rounded up), ... 1 that `probe` survives. Throws Error with
// out_of_memory_advice when one row is too many; other exceptions pass.
std::int64_t largest_that_fits(std::int64_t most, const std::function<Batch(std::int64_t)>& batch,
                               const std::function<void(const Batch&)>& probe);

}  // namespace needle
