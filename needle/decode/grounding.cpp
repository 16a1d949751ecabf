#include "needle/decode/grounding.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <string>
#include <utility>

#include "needle/calls/utf8.h"
#include "needle/decode/text_automaton.h"

namespace needle {
namespace {

std::uint32_t folded(std::uint32_t c) {
  const bool ascii = c >= 'A' && c <= 'Z';
  const bool latin = c >= 0xC0 && c <= 0xDE && c != 0xD7;
  const bool greek = c >= 0x391 && c <= 0x3A9 && c != 0x3A2;
  const bool cyrillic = c >= 0x410 && c <= 0x42F;
  if (ascii || latin || greek || cyrillic) {
    return c + 0x20;
  }
  return c >= 0x400 && c <= 0x40F ? c + 0x50 : c;
}

// The upper case of a folded character; itself if it has none.
std::uint32_t unfolded(std::uint32_t c) {
  for (const std::uint32_t distance : {0x20u, 0x50u}) {
    if (c >= distance && folded(c - distance) == c) {
      return c - distance;
    }
  }
  return c;
}

bool is_space(std::uint32_t c) { return c == ' ' || (c >= '\t' && c <= '\r') || c == 0xA0; }

// Beyond ASCII everything but spaces and common punctuation counts as part of a word.
bool is_word(std::uint32_t c) {
  const bool punctuation = (c >= 0x2000 && c <= 0x206F) || (c >= 0x3000 && c <= 0x303F) ||
                           (c >= 0x80 && c <= 0xBF) || (c >= 0xFF00 && c <= 0xFF0F);
  const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return letter || (c >= '0' && c <= '9') || c == '_' || (c > 0x7F && !punctuation);
}

bool is_boundary(std::uint32_t before, std::uint32_t after) {
  return is_word(before) != is_word(after) || (is_word(before) && (before > 0x7F || after > 0x7F));
}

// visit(code point, begin, end) for each character; a broken byte is U+FFFD.
template <typename Visit>
void for_each_character(std::string_view text, Visit visit) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length_at(text, at);
    const std::uint32_t c = length == 0 ? 0xFFFD : utf8_code_point_at(text, at);
    const std::size_t end = at + std::max<std::size_t>(1, length);
    visit(c, at, end);
    at = end;
  }
}

}  // namespace

namespace {

// Letter cases that a span may have been meant in so far, above the place in an element of a State.
enum Case : std::uint32_t { kAsWritten = 1, kSmall = 2, kTitle = 4, kSentence = 8, kCapitals = 16 };
constexpr std::uint32_t kEveryCase = 31;
constexpr std::uint32_t kFresh = 32;  // nothing was read yet
constexpr std::uint32_t kPlaceBits = 24;
constexpr std::size_t kMostCharacters = (std::size_t{1} << kPlaceBits) - 1;
constexpr std::size_t kShortWord = 4;

}  // namespace

QuerySpans::QuerySpans(std::string_view query) {
  for_each_character(query, [this](std::uint32_t c, std::size_t begin, std::size_t end) {
    if (is_space(c) && !characters_.empty() && characters_.back().folded == ' ') {
      characters_.back().end = end;
    } else if (characters_.size() < kMostCharacters) {
      const std::uint32_t written = is_space(c) ? ' ' : c;
      characters_.push_back(
          {.written = written, .folded = folded(written), .begin = begin, .end = end});
    }
  });
  const std::size_t count = characters_.size();
  const auto at = [&](std::size_t i) { return i < count ? characters_[i].folded : ' '; };
  ends_.resize(count + 1);
  std::size_t word = 0;  // where the last one begins
  for (std::size_t i = 0; i <= count; ++i) {
    const bool boundary = is_boundary(i == 0 ? ' ' : at(i - 1), at(i));
    if (boundary && i < count && is_word(at(i))) {
      starts_.push_back(static_cast<std::uint32_t>(i) | (kEveryCase | kFresh) << kPlaceBits);
      characters_[i].begins_word = true;
    }
    ends_[i] = boundary && i > 0 && is_word(at(i - 1));
    for (std::size_t k = word; k < i && boundary; ++k) {
      characters_[k].in_short_word = i - word <= kShortWord;
    }
    word = boundary ? i : word;
  }
  for (std::size_t i = count; i-- > 0;) {
    if (!is_word(at(i))) {  // what leads to a long word is no way for capitals
      characters_[i].in_short_word = i + 1 < count && characters_[i + 1].in_short_word;
    }
  }
  to_an_end_.resize(count + 1);
  for (std::size_t i = count + 1; i-- > 0;) {
    to_an_end_[i] = ends_[i] || i == count ? 0 : to_an_end_[i + 1] + 1;
  }
  bytes_to_an_end_.resize(count + 1);
  for (std::size_t i = count; i-- > 0;) {
    const std::uint32_t c = characters_[i].folded;
    bytes_to_an_end_[i] = ends_[i] ? 0 : bytes_to_an_end_[i + 1] + fewest_json_bytes(c, c);
  }
  // Behind the last word no span can end: such places are dead ends.
  const auto last = std::find(ends_.rbegin(), ends_.rend(), true);
  last_end_ = last == ends_.rend() ? 0 : static_cast<std::size_t>(ends_.rend() - last) - 1;
}

QuerySpans::State QuerySpans::start() const { return starts_; }

std::size_t QuerySpans::place(std::uint32_t element) const { return element & kMostCharacters; }

// visit(character, cases): the characters that may come next here, each with the cases it fits.
template <typename Visit>
void QuerySpans::for_each_way(std::uint32_t element, Visit visit) const {
  if (place(element) >= last_end_) {
    return;
  }
  const Character& c = characters_[place(element)];
  const std::uint32_t cases = element >> kPlaceBits;
  const std::uint32_t capital = unfolded(c.folded);
  std::uint32_t small = cases & kSmall, large = 0;
  ((c.begins_word ? large : small) |= cases & kTitle);
  (((cases & kFresh) != 0 ? large : small) |= cases & kSentence);
  large |= c.in_short_word ? cases & kCapitals : 0;
  ((c.written == c.folded ? small : large) |= cases & kAsWritten);
  if (capital == c.folded) {
    small |= large;
  }
  if (small != 0) {
    visit(c.folded, small);
  }
  if (large != 0 && capital != c.folded) {
    visit(capital, large);
  }
}

QuerySpans::State QuerySpans::advance(StateView state, std::uint32_t code_point) const {
  State next;
  advance(state, code_point, next);
  return next;
}

void QuerySpans::advance(StateView state, std::uint32_t code_point, State& next) const {
  const std::uint32_t wanted = is_space(code_point) ? ' ' : code_point;
  next.clear();
  for (const std::uint32_t element : state) {
    for_each_way(element, [&](std::uint32_t c, std::uint32_t cases) {
      if (c == wanted) {
        next.push_back(static_cast<std::uint32_t>(place(element) + 1) | cases << kPlaceBits);
      }
    });
  }
}

bool QuerySpans::may_end(StateView state) const {
  return std::ranges::any_of(state, [this](std::uint32_t element) {
    return (element >> kPlaceBits & kFresh) == 0 && ends_[place(element)];
  });
}

std::size_t QuerySpans::shortest_end(StateView state) const {
  std::size_t shortest = 0;
  bool any = false;
  for (const std::uint32_t element : state) {
    const std::size_t i = place(element);
    const bool fresh = (element >> kPlaceBits & kFresh) != 0;
    const std::size_t here = fresh ? to_an_end_[i + 1] + 1 : to_an_end_[i];
    shortest = any ? std::min(shortest, here) : here;
    any = true;
  }
  return shortest;
}

std::int32_t QuerySpans::bytes_to_end(StateView state) const {
  std::int32_t fewest = -1;
  for (const std::uint32_t element : state) {
    const std::size_t i = place(element);
    const bool fresh = (element >> kPlaceBits & kFresh) != 0;
    const std::uint32_t c = fresh ? characters_[i].folded : 0;
    const std::int32_t here =
        fresh ? bytes_to_an_end_[i + 1] + fewest_json_bytes(c, c) : bytes_to_an_end_[i];
    fewest = fewest < 0 ? here : std::min(fewest, here);
  }
  return fewest;
}

std::int32_t QuerySpans::bytes_behind(StateView state, std::uint32_t first,
                                      std::uint32_t last) const {
  std::int32_t fewest = -1;
  for (const std::uint32_t element : state) {
    for_each_way(element, [&](std::uint32_t c, std::uint32_t) {
      const std::int32_t behind = bytes_to_an_end_[place(element) + 1];
      if (first <= c && c <= last) {
        fewest = fewest < 0 ? behind : std::min(fewest, behind);
      }
    });
  }
  return fewest;
}

void QuerySpans::next_characters(StateView state, std::vector<std::uint32_t>& next) const {
  next.clear();
  for (const std::uint32_t element : state) {
    for_each_way(element, [&next](std::uint32_t c, std::uint32_t) { next.push_back(c); });
  }
}

std::optional<TextRange> QuerySpans::find(std::string_view text) const {
  std::vector<std::size_t> ends;  // of the text so far, wherever it stands
  for (const std::uint32_t element : starts_) {
    ends.push_back(place(element));
  }
  std::size_t length = 0;
  bool in_gap = false;
  for_each_character(text, [&](std::uint32_t c, std::size_t, std::size_t) {
    if (is_space(c) && in_gap) {
      return;
    }
    in_gap = is_space(c);
    const std::uint32_t wanted = in_gap ? ' ' : folded(c);
    std::erase_if(
        ends, [&](std::size_t at) { return at >= last_end_ || characters_[at].folded != wanted; });
    for (std::size_t& at : ends) {
      ++at;
    }
    ++length;
  });
  if (length == 0) {
    return std::nullopt;
  }
  const auto end = std::ranges::find_if(ends, [this](std::size_t at) { return ends_[at]; });
  if (end == ends.end()) {
    return std::nullopt;
  }
  return TextRange{characters_[*end - length].begin, characters_[*end - 1].end};
}

namespace {

struct Word {
  std::string text;  // lower case
  TextRange range;
};

// Runs of ASCII letters, and numbers in digits.
std::vector<Word> words_of(std::string_view query) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  std::vector<Word> words;
  for (std::size_t at = 0; at < query.size();) {
    const std::size_t begin = at;
    const bool after_word =
        begin > 0 && is_word(static_cast<unsigned char>(query[begin - 1])) && query[begin] == '-';
    const std::size_t digits = after_word ? 0 : json_number_length(query.substr(at));
    if (digits > 0) {
      at += digits;
    } else {
      while (at < query.size() && is_letter(query[at])) {
        ++at;
      }
      if (at == begin) {
        ++at;
        continue;
      }
    }
    Word word{.text = std::string(query.substr(begin, at - begin)), .range = {begin, at}};
    std::ranges::transform(word.text, word.text.begin(), [](char c) {
      return static_cast<char>(folded(static_cast<unsigned char>(c)));
    });
    words.push_back(std::move(word));
  }
  return words;
}

std::optional<double> small_number(std::string_view word) {
  constexpr std::array<std::string_view, 20> kOnes = {
      "zero",     "one",     "two",     "three",     "four",     "five",    "six",
      "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",  "thirteen",
      "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
  constexpr std::array<std::string_view, 8> kTens = {"twenty", "thirty",  "forty",  "fifty",
                                                     "sixty",  "seventy", "eighty", "ninety"};
  if (const auto* found = std::ranges::find(kOnes, word); found != kOnes.end()) {
    return static_cast<double>(found - kOnes.begin());
  }
  if (const auto* found = std::ranges::find(kTens, word); found != kTens.end()) {
    return 10.0 * static_cast<double>(found - kTens.begin() + 2);
  }
  return std::nullopt;
}

double scale_of(std::string_view word) {
  return word == "thousand" ? 1e3 : word == "million" ? 1e6 : word == "billion" ? 1e9 : 0;
}

// The longest number in words from `first` on; `used` is 0 if there is none.
QueryNumber number_in_words(std::span<const Word> words, std::size_t& used) {
  double total = 0;
  double group = 0;       // below the next scale
  double lowest = 1e300;  // what may follow must be smaller
  used = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i].text;
    if (const auto small = small_number(word)) {
      const double unit = *small >= 20 ? 10 : 1;
      const bool fits = used == 0 || (*small > 0 && *small < lowest && lowest >= 10);
      if (!fits || (lowest == 10 && *small >= 10)) {
        break;
      }
      group += *small;
      lowest = unit == 10 ? 10 : 1;
    } else if (word == "hundred" && used > 0 && group > 0 && group < 10) {
      group *= 100;
      lowest = 100;
    } else if (const double scale = scale_of(word); scale > 0 && used > 0 && group > 0) {
      total += group * scale;
      group = 0;
      lowest = scale;
    } else if (word == "and" && used > 0 && lowest >= 100 && i + 1 < words.size() &&
               small_number(words[i + 1].text)) {
      continue;
    } else {
      break;
    }
    used = i + 1;
  }
  if (used == 0) {
    return {};
  }
  return {.value = total + group, .range = {words.front().range.begin, words[used - 1].range.end}};
}

}  // namespace

std::vector<QueryNumber> numbers_of(std::string_view query) {
  const std::vector<Word> words = words_of(query);
  std::vector<QueryNumber> numbers;
  for (std::size_t i = 0; i < words.size();) {
    double value = 0;
    const std::string& text = words[i].text;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool digits = text.front() == '-' || (text.front() >= '0' && text.front() <= '9');
    if (digits && parsed.ec == std::errc()) {
      numbers.push_back({.value = value, .range = words[i].range});
      ++i;
      continue;
    }
    std::size_t used = 0;
    const QueryNumber number = number_in_words(std::span(words).subspan(i), used);
    if (used > 0) {
      numbers.push_back(number);
    }
    i += std::max<std::size_t>(1, used);
  }
  return numbers;
}

std::optional<TextRange> find_in_query(std::string_view query, const JsonValue& value) {
  if (value.is_string()) {
    return QuerySpans(query).find(value.as_string());
  }
  if (value.is_number()) {
    for (const QueryNumber& number : numbers_of(query)) {
      if (number.value == value.as_double()) {
        return number.range;
      }
    }
  }
  return std::nullopt;
}

bool is_groundable(const JsonValue& schema) {
  const JsonValue* const type = schema.find("type");
  return type != nullptr && type->is_string() && type->as_string() == "string" &&
         std::ranges::none_of(std::array{"enum", "const", "format", "pattern"},
                              [&](const char* key) { return schema.find(key) != nullptr; });
}

}  // namespace needle
