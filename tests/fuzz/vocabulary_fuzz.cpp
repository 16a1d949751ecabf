// A tokenizer's tables as a weights file brings them, bytes of them changed: refused or usable. The
// input is a list of changes, each of four bytes: where (three) and what.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/tokenizer.h"

namespace {

// Of the right size to the byte, and where tables may lie: reads beyond it are noticed.
std::span<std::byte> fresh_copy(std::span<const std::byte> tables, std::size_t size) {
  auto* const copy = static_cast<std::byte*>(::operator new (size, std::align_val_t{64}));
  std::memcpy(copy, tables.data(), size);
  return {copy, size};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string model = needle::read_file(NEEDLE_FUZZ_TOKENIZER);
  static const needle::Tokenizer whole = needle::Tokenizer::from_bytes(model);
  const std::span<const std::byte> tables = whole.tables();
  const bool shorter = size % 4 == 1;  // a byte more: cut at the last change's place
  std::size_t kept = tables.size();
  const auto place_of = [&](std::size_t at) {
    const std::size_t place = data[at] | data[at + 1] << 8 | data[at + 2] << 16;
    return place % tables.size();
  };
  if (shorter && size > 4) {
    kept = place_of(size - 5);
  }
  const std::span<std::byte> changed = fresh_copy(tables, kept);
  for (std::size_t at = 0; at + 4 <= size; at += 4) {
    if (const std::size_t place = place_of(at); place < kept) {
      changed[place] = static_cast<std::byte>(data[at + 3]);
    }
  }
  try {
    const auto tokenizer = needle::Tokenizer::from_tables(model, changed, nullptr, "fuzz");
    const auto special = needle::SpecialText::kSpecial;
    const auto ids =
        tokenizer.encode("turn <tools> on \xff\xc3\xa9 <tool_call>[{\"name\":", special);
    tokenizer.decode(ids);
    tokenizer.encode_spans(
        "play the song that I heard yesterday in Caf\xc3\xa9 \xe5\x8c\x97 twice");
    std::vector<needle::TokenId> all;
    for (needle::TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
      all.push_back(id);
    }
    tokenizer.decode(all);
  } catch (const needle::Error&) {
  }
  ::operator delete (changed.data(), std::align_val_t{64});
  return 0;
}
