#include "needle/text/normalize.h"

#include "needle/calls/utf8.h"

namespace needle {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";    // U+2581
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

class Normalizer {
 public:
  Normalizer(std::string_view input, const SymbolMatcher& symbols, const NormalizeOptions& options,
             NormalizedText& result)
      : input_(input),
        symbols_(symbols),
        options_(options),
        // Symbols matter here only where they keep their spaces, or share one origin.
        match_symbols_(options.want_origins || symbols.any_has_space()),
        result_(result) {}

  void run() {
    result_.text.clear();
    result_.origins.clear();
    if (input_.empty()) {
      return;
    }
    skip_leading_spaces();
    if (at_ == input_.size()) {
      finish();
      return;
    }
    if (result_.text.capacity() < input_.size()) {
      result_.text.reserve(input_.size() + input_.size() / 2 + 8);
    }
    if (options_.add_dummy_prefix) {
      append(kSpaceMark);
    }
    bool after_space = options_.remove_extra_whitespaces;
    while (at_ < input_.size()) {
      const Unit unit = next_unit();
      std::string_view text = unit.text;
      while (after_space && text.starts_with(' ')) {
        text.remove_prefix(1);
      }
      if (!text.empty()) {
        append_escaped(text);
        after_space = options_.remove_extra_whitespaces && text.ends_with(' ');
      }
      at_ += unit.consumed;
    }
    if (options_.remove_extra_whitespaces) {
      drop_trailing_spaces();
    }
    finish();
  }

 private:
  // A symbol or a character, and how many bytes of the input it takes.
  struct Unit {
    std::string_view text;
    std::size_t consumed = 0;
  };

  Unit next_unit() const {
    if (match_symbols_) {
      if (const auto match = symbols_.longest(input_, at_, options_.special); match.id >= 0) {
        return {input_.substr(at_, match.bytes), match.bytes};
      }
    }
    const std::size_t bytes = utf8_length_at(input_, at_);
    return bytes == 0 ? Unit{kReplacement, 1} : Unit{input_.substr(at_, bytes), bytes};
  }

  void skip_leading_spaces() {
    while (options_.remove_extra_whitespaces && at_ < input_.size()) {
      const Unit unit = next_unit();
      if (unit.text != " ") {
        return;
      }
      at_ += unit.consumed;
    }
  }

  void append(std::string_view text) {
    result_.text += text;
    if (options_.want_origins) {
      result_.origins.insert(result_.origins.end(), text.size(), static_cast<std::uint32_t>(at_));
    }
  }

  void append_escaped(std::string_view text) {
    if (text.size() == 1) {
      append(text == " " ? kSpaceMark : text);
      return;
    }
    for (std::size_t i = 0; i < text.size(); ++i) {
      append(text[i] == ' ' ? kSpaceMark : text.substr(i, 1));
    }
  }

  // Also those that the input wrote as U+2581.
  void drop_trailing_spaces() {
    while (result_.text.ends_with(kSpaceMark)) {
      const std::size_t length = result_.text.size() - kSpaceMark.size();
      result_.text.resize(length);
      if (options_.want_origins) {
        at_ = result_.origins[length];
        result_.origins.resize(length);
      }
    }
  }

  void finish() {
    if (options_.want_origins) {
      result_.origins.push_back(static_cast<std::uint32_t>(at_));
    }
  }

  std::string_view input_;
  const SymbolMatcher& symbols_;
  NormalizeOptions options_;
  bool match_symbols_;
  NormalizedText& result_;
  std::size_t at_ = 0;
};

}  // namespace

void normalize(std::string_view input, const SymbolMatcher& symbols,
               const NormalizeOptions& options, NormalizedText& result) {
  Normalizer(input, symbols, options, result).run();
}

}  // namespace needle
