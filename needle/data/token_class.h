// Which target tokens are tool names, argument keys and argument values (specification, section 4).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/data/example.h"
#include "needle/text/tokenizer.h"

namespace needle {

// A text with the class of each of its bytes.
struct MarkedText {
  std::string text;
  std::vector<TokenClass> marks;  // one a byte
};

// `answer` as write_compact writes it, with every call's name (quotes included), argument keys
// (quotes included) and argument values (of a string its contents, of anything else all of it)
// marked. Anything but an array has no marks.
MarkedText mark_answer(const JsonValue& answer, JsonEscapes escapes);

// The highest class among each token's bytes; 0 for a token without any.
std::vector<TokenClass> classify_tokens(std::span<const TokenSpan> tokens,
                                        std::span<const TokenClass> marks);

// Marks as the reference finds them: by searching the text, first occurrence only, one mark a code
// point.
std::vector<TokenClass> reference_marks(std::string_view answer_text);

// Classes as the reference aligns them: token lengths are counted with the dummy prefix's space, so
// each token takes the marks of the text one character further right, and a token that runs past
// the end gets 0.
std::vector<TokenClass> reference_classes(const Tokenizer& tokenizer,
                                          std::span<const TokenSpan> tokens,
                                          std::span<const TokenClass> marks);

}  // namespace needle
