// SentencePiece's identity normalisation: a dummy space in front, one space for a run of them, none
// at the edges, spaces written as U+2581, broken bytes as U+FFFD.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "needle/text/bpe.h"

namespace needle {

struct NormalizeOptions {
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool special = false;       // <tool_call> and <tools> are symbols, as in Bpe::encode
  bool want_origins = false;  // fill NormalizedText::origins
};

struct NormalizedText {
  std::string text;  // valid UTF-8; empty if the input holds only spaces
  // Where each byte of `text` came from, and the end of the last, as positions in the input; a
  // user-defined symbol comes whole from where it begins.
  std::vector<std::uint32_t> origins;
};

// `input` may be any bytes, less than 1 GiB of them. `result`: out, what it held is gone.
void normalize(std::string_view input, const SymbolMatcher& symbols,
               const NormalizeOptions& options, NormalizedText& result);

}  // namespace needle
