#include "needle/data/token_class.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "needle/calls/utf8.h"

namespace needle {
namespace {

// Writes JSON and the class of every byte side by side.
class MarkingWriter {
 public:
  explicit MarkingWriter(JsonEscapes escapes) : escapes_(escapes) {}

  void write(std::string_view text, TokenClass mark = TokenClass::kStructure) {
    marked_.text += text;
    marked_.marks.resize(marked_.text.size(), mark);
  }

  // The quotes are structure, what stands between them has the class.
  void write_string(std::string_view text, TokenClass mark) {
    const std::string quoted = write_compact(JsonValue::string(std::string(text)), escapes_);
    write("\"");
    write(std::string_view(quoted).substr(1, quoted.size() - 2), mark);
    write("\"");
  }

  void write_value(const JsonValue& value, TokenClass mark = TokenClass::kStructure) {
    if (value.is_string()) {
      write_string(value.as_string(), mark);
    } else {
      write(write_compact(value, escapes_), mark);
    }
  }

  void write_arguments(const JsonValue& arguments) {
    std::string_view separator = "{";
    for (const auto& [key, value] : arguments.members()) {
      write(separator);
      write_string(key, TokenClass::kKey);
      write(":");
      write_value(value, TokenClass::kValue);
      separator = ",";
    }
    write(arguments.members().empty() ? "{}" : "}");
  }

  void write_call(const JsonValue& call) {
    std::string_view separator = "{";
    for (const auto& [key, value] : call.members()) {
      write(separator);
      write_string(key, TokenClass::kStructure);
      write(":");
      if (key == "arguments" && value.is_object()) {
        write_arguments(value);
      } else {
        write_value(
            value, key == "name" && value.is_string() ? TokenClass::kName : TokenClass::kStructure);
      }
      separator = ",";
    }
    write(call.members().empty() ? "{}" : "}");
  }

  MarkedText take() { return std::move(marked_); }

 private:
  JsonEscapes escapes_;
  MarkedText marked_;
};

void raise(std::span<TokenClass> marks, std::size_t begin, std::size_t count, TokenClass mark) {
  for (TokenClass& present : marks.subspan(begin, count)) {
    present = std::max(present, mark);
  }
}

// The first "key":"value", or else the first "key":value.
void mark_first_value(std::string_view text, std::span<TokenClass> marks, std::string_view key,
                      std::string_view value, TokenClass mark) {
  const std::string prefix = "\"" + std::string(key) + "\":";
  const std::string quoted = prefix + "\"" + std::string(value) + "\"";
  if (const std::size_t at = text.find(quoted); at != std::string_view::npos) {
    raise(marks, at + prefix.size() + 1, value.size(), mark);
  } else if (const std::size_t bare = text.find(prefix + std::string(value));
             bare != std::string_view::npos) {
    raise(marks, bare + prefix.size(), value.size(), mark);
  }
}

void mark_every_key(std::string_view text, std::span<TokenClass> marks, std::string_view key) {
  const std::string quoted = "\"" + std::string(key) + "\":";
  for (std::size_t at = text.find(quoted); at != std::string_view::npos;
       at = text.find(quoted, at + quoted.size())) {
    raise(marks, at + 1, key.size(), TokenClass::kKey);
  }
}

bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0u) != 0x80u; }

}  // namespace

MarkedText mark_answer(const JsonValue& answer, JsonEscapes escapes) {
  MarkingWriter writer(escapes);
  if (!answer.is_array()) {
    writer.write(write_compact(answer, escapes));
    return writer.take();
  }
  std::string_view separator = "[";
  for (const JsonValue& call : answer.items()) {
    writer.write(separator);
    if (call.is_object()) {
      writer.write_call(call);
    } else {
      writer.write(write_compact(call, escapes));
    }
    separator = ",";
  }
  writer.write(answer.items().empty() ? "[]" : "]");
  return writer.take();
}

std::vector<TokenClass> classify_tokens(std::span<const TokenSpan> tokens,
                                        std::span<const TokenClass> marks) {
  std::vector<TokenClass> classes;
  classes.reserve(tokens.size());
  for (const TokenSpan& token : tokens) {
    TokenClass highest = TokenClass::kStructure;
    for (std::size_t at = token.begin; at < std::min(token.end, marks.size()); ++at) {
      highest = std::max(highest, marks[at]);
    }
    classes.push_back(highest);
  }
  return classes;
}

std::vector<TokenClass> reference_marks(std::string_view answer_text) {
  std::vector<TokenClass> marks(answer_text.size(), TokenClass::kStructure);  // one a byte
  const JsonParseResult parsed = parse_json_value(answer_text);
  if (parsed.value && parsed.value->is_array()) {
    for (const JsonValue& call : parsed.value->items()) {
      const JsonValue* const name = call.find("name");
      if (name != nullptr && name->is_string() && !name->as_string().empty()) {
        mark_first_value(answer_text, marks, "name", name->as_string(), TokenClass::kName);
      }
      const JsonValue* const arguments = call.find("arguments");
      if (arguments == nullptr || !arguments->is_object()) {
        continue;
      }
      for (const auto& [key, value] : arguments->members()) {
        mark_every_key(answer_text, marks, key);
        mark_first_value(answer_text, marks, key,
                         value.is_string() ? value.as_string() : write_spaced(value),
                         TokenClass::kValue);
      }
    }
  }
  std::vector<TokenClass> by_character;  // a match begins and ends at characters
  by_character.reserve(marks.size());
  for (std::size_t at = 0; at < answer_text.size(); ++at) {
    if (begins_character(answer_text[at])) {
      by_character.push_back(marks[at]);
    }
  }
  return by_character;
}

std::vector<TokenClass> reference_classes(const Tokenizer& tokenizer,
                                          std::span<const TokenSpan> tokens,
                                          std::span<const TokenClass> marks) {
  std::vector<TokenClass> classes;
  classes.reserve(tokens.size());
  std::size_t position = 0;
  for (const TokenSpan& token : tokens) {
    // A byte piece counts as the six characters of "<0x7A>", as it is written in the vocabulary.
    const std::string_view piece = tokenizer.piece(token.id);
    const auto length =
        static_cast<std::size_t>(std::count_if(piece.begin(), piece.end(), begins_character));
    TokenClass highest = TokenClass::kStructure;
    if (position + length <= marks.size()) {
      for (std::size_t at = position; at < position + length; ++at) {
        highest = std::max(highest, marks[at]);
      }
    }
    classes.push_back(highest);
    position += length;
  }
  return classes;
}

}  // namespace needle
