#include "needle/train/micro_batch.h"

#include <array>
#include <new>
#include <string_view>

#include <c10/util/Exception.h>

#include "needle/core/error.h"
#include "needle/core/log.h"

namespace needle {

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
      dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) {
    return true;
  }
  // The CPU allocator of LibTorch throws a plain c10::Error, oneDNN an exception with its own
  // texts.
  constexpr std::array<std::string_view, 4> kTexts = {"DefaultCPUAllocator: can't allocate memory",
                                                      "not enough memory: you tried to allocate",
                                                      "could not allocate", "out of memory"};
  const std::string_view what = error.what();
  for (const std::string_view text : kTexts) {
    if (what.find(text) != std::string_view::npos) {
      return true;
    }
  }
  return false;
}

std::string out_of_memory_advice(std::int64_t rows, const Batch& batch, const std::string& what) {
  const std::string first_line = what.substr(0, what.find('\n'));
  const std::string place =
      format("out of memory: a pass over {} rows of {} + {} tokens does not fit", rows,
             batch.enc_len, batch.dec_len);
  if (rows <= 1) {
    return format(
        "{} ({}). Shorten rows (data.rows.prompt.max_enc_len, max_dec_len), set "
        "train.activation_checkpointing=true or take a smaller model",
        place, first_line);
  }
  return format(
      "{} ({}). Try --set train.micro_batch={}, which computes the same in smaller parts, or "
      "train.micro_batch=auto; with --resume the run goes on from its last checkpoint",
      place, first_line, (rows + 1) / 2);
}

std::int64_t largest_that_fits(std::int64_t most, const std::function<Batch(std::int64_t)>& batch,
                               const std::function<void(const Batch&)>& probe) {
  for (std::int64_t rows = most;; rows = (rows + 1) / 2) {
    const Batch trial = batch(rows);
    std::string what;
    try {
      probe(trial);
      return rows;
    } catch (const std::exception& error) {
      if (!is_out_of_memory(error)) {
        throw;
      }
      what = error.what();
    }
    if (rows == 1) {
      throw Error(out_of_memory_advice(rows, trial, what));
    }
    log_info("a micro-batch of {} rows does not fit into memory", rows);
  }
}

}  // namespace needle
