// Where the calls, names and values of an answer stand in its text.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

// Bytes [begin, end) of a text.
struct TextRange {
  std::size_t begin = 0;
  std::size_t end = 0;
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

struct ArgumentSpan {
  std::string name;
  TextRange key;    // with its quotes
  TextRange value;  // whole JSON value
};

struct CallSpan {
  std::string name;
  TextRange all;        // from { to }
  TextRange name_text;  // with its quotes
  std::vector<ArgumentSpan> arguments;
};

// Nothing unless `text` is a list of calls, [{"name":...,"arguments":{...}}]; other keys of a call
// are skipped. Takes time linear in the text and no stack.
std::optional<std::vector<CallSpan>> locate_calls(std::string_view text);

}  // namespace needle
