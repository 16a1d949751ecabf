// Any bytes as a SentencePiece model: refused or usable.
#include <cstdint>
#include <string_view>

#include "needle/core/error.h"
#include "needle/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto tokenizer = needle::Tokenizer::from_bytes(
        std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    const auto ids = tokenizer.encode("turn <tools> on \xff\xc3\xa9");
    tokenizer.decode(ids);
  } catch (const needle::Error&) {
  }
  return 0;
}
