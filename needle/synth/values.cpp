#include "needle/synth/values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <span>
#include <vector>

#include "needle/core/format.h"
#include "needle/synth/words.h"

namespace needle {
namespace {

bool contains_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [text](std::string_view word) {
    return text.find(word) != std::string_view::npos;
  });
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(c < 128 ? std::tolower(c) : c); });
  return result;
}

// One text in five belongs to the test half. FNV-1a: the same on every platform.
bool in_pool(std::string_view text, ValuePool pool) {
  if (pool == ValuePool::kAll) {
    return true;
  }
  std::uint32_t hash = 2166136261u;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  }
  const bool test = (hash >> 8) % 5 == 0;
  return test == (pool == ValuePool::kTest);
}

template <typename Draw>
std::string draw_from_pool(ValuePool pool, const Draw& draw) {
  std::string text = draw();
  for (int attempt = 0; attempt < 64 && !in_pool(text, pool); ++attempt) {
    text = draw();
  }
  return text;
}

std::string pick(std::span<const std::string_view> words, Random& random) {
  return std::string(words[random.below(static_cast<std::uint32_t>(words.size()))]);
}

bool chance(Random& random, double probability) { return random.uniform() < probability; }

std::string draw_time(Random& random) {
  const std::uint32_t hour = 1 + random.below(12);
  const std::string half = chance(random, 0.5) ? "am" : "pm";
  switch (random.below(4)) {
    case 0:
      return format("{} {}", hour, half);
    case 1:
      return format("{}:{:>02} {}", hour, 5 * random.below(12), half);
    case 2:
      return format("{:>02}:{:>02}", random.below(24), random.below(60));
    default:
      return format("{}{}", hour, half);
  }
}

std::string draw_date(Random& random) {
  static constexpr std::array<std::string_view, 7> kRelative{
      "today",     "tomorrow", "tonight", "next week", "this weekend", "the day after tomorrow",
      "next month"};
  switch (random.below(4)) {
    case 0:
      return pick(kRelative, random);
    case 1:
      return std::string(chance(random, 0.4) ? "next " : "") + pick(words::kWeekdays, random);
    case 2:
      return format("{} {}", pick(words::kMonths, random), 1 + random.below(28));
    default:
      return format("{}-{:>02}-{:>02}", 2024 + random.below(6), 1 + random.below(12),
                    1 + random.below(28));
  }
}

std::string draw_duration(Random& random) {
  static constexpr std::array<std::string_view, 4> kUnits{"minutes", "seconds", "hours", "days"};
  return format("{} {}", 2 + random.below(58), pick(kUnits, random));
}

// "silver river", "the last garden of winter": more different titles than any model can learn by
// heart.
std::string draw_title(Random& random) {
  const std::string adjective = pick(words::kAdjectives, random);
  const std::string noun = pick(words::kNouns, random);
  switch (random.below(5)) {
    case 0:
      return adjective + " " + noun;
    case 1:
      return "the " + noun + " of " + pick(words::kNouns, random);
    case 2:
      return noun + " and " + pick(words::kNouns, random);
    case 3:
      return "the " + adjective + " " + noun;
    default:
      return noun;
  }
}

std::string draw_message(Random& random) {
  static constexpr std::array<std::string_view, 10> kOpenings{
      "i will be late for", "do not forget",         "please bring", "thanks for",
      "see you at",         "we need to talk about", "i love",       "happy birthday and enjoy",
      "call me about",      "dinner is ready with"};
  const auto thing = [&random] {
    return (chance(random, 0.5) ? pick(words::kAdjectives, random) + " " : "") +
           pick(words::kNouns, random);
  };
  if (chance(random, 0.4)) {
    return pick(kOpenings, random) + " the " + thing();
  }
  // Free text: small words and any others, so that a model learns to copy what it has never seen.
  static constexpr std::array<std::string_view, 14> kSmallWords{
      "the", "a", "my", "your", "is", "has", "was", "at", "we", "and", "with", "near", "to", "not"};
  std::string text = pick(kSmallWords, random) + " " + thing();
  for (std::uint32_t i = random.below(3); i > 0; --i) {
    text += " " + pick(kSmallWords, random) + " " + thing();
  }
  return text;
}

std::string draw_person(Random& random) {
  std::string name = pick(words::kFirstNames, random);
  if (chance(random, 0.4)) {
    name += " " + pick(words::kLastNames, random);
  }
  return name;
}

std::string draw_text(ValueKind kind, Random& random) {
  switch (kind) {
    case ValueKind::kTime:
      return draw_time(random);
    case ValueKind::kDate:
      return draw_date(random);
    case ValueKind::kDuration:
      return draw_duration(random);
    case ValueKind::kCity:
      return pick(words::kCities, random);
    case ValueKind::kPerson:
    case ValueKind::kArtist:
      return draw_person(random);
    case ValueKind::kRoom:
      return pick(words::kRooms, random);
    case ValueKind::kColor:
      return pick(words::kColors, random);
    case ValueKind::kDevice:
      return pick(words::kDevices, random);
    case ValueKind::kSong:
    case ValueKind::kTitle:
      return draw_title(random);
    case ValueKind::kMessage:
      return draw_message(random);
    case ValueKind::kFood:
      return chance(random, 0.5)
                 ? pick(words::kFoods, random)
                 : pick(words::kFoodAdjectives, random) + " " + pick(words::kFoods, random);
    case ValueKind::kProduct:
      return pick(words::kAdjectives, random) + " " + pick(words::kProducts, random);
    case ValueKind::kLanguage:
      return pick(words::kLanguages, random);
    case ValueKind::kCurrency:
      return pick(words::kCurrencies, random);
    case ValueKind::kEmail:
      return lower(pick(words::kFirstNames, random)) + "@" + pick(words::kNouns, random) + ".com";
    case ValueKind::kPhone:
      return format("{}-{:>04}", 100 + random.below(900), random.below(10000));
    default:
      return chance(random, 0.3)
                 ? pick(words::kNouns, random)
                 : pick(words::kAdjectives, random) + " " + pick(words::kNouns, random);
  }
}

struct Range {
  double low;
  double high;
};

Range number_range(const ToolParameter& parameter) {
  Range range{1, 100};
  const std::string name = lower(parameter.name);
  if (contains_any(name, {"percent", "volume", "brightness", "level"})) {
    range = {0, 100};
  } else if (contains_any(name, {"temperature", "degree"})) {
    range = {10, 35};
  } else if (contains_any(name, {"guests", "people", "party", "count", "quantity", "seats", "rooms",
                                 "nights"})) {
    range = {1, 12};
  } else if (contains_any(name, {"amount", "price", "budget"})) {
    range = {5, 950};
  } else if (contains_any(name, {"year"})) {
    range = {1950, 2030};
  }
  const auto limit = [&parameter](std::string_view key) { return parameter.schema.find(key); };
  const bool has_minimum = limit("minimum") != nullptr && limit("minimum")->is_number();
  const bool has_maximum = limit("maximum") != nullptr && limit("maximum")->is_number();
  if (has_minimum) {
    range.low = limit("minimum")->as_double();
    range.high = std::max(range.high, range.low + 10);
  }
  if (has_maximum) {
    range.high = limit("maximum")->as_double();
    if (!has_minimum) {
      range.low = std::min(range.low, range.high);
    }
  }
  return range;
}

SpokenValue draw_integer(const ToolParameter& parameter, ValuePool pool, Random& random) {
  const Range range = number_range(parameter);
  const double low = std::ceil(range.low);
  const double span = std::floor(range.high) - low + 1;
  const std::string text = draw_from_pool(pool, [&] {
    return format(
        "{}", static_cast<std::int64_t>(low + std::floor(random.uniform() * std::max(span, 1.0))));
  });
  return {JsonValue::integer(std::stoll(text)), text};
}

SpokenValue draw_number(const ToolParameter& parameter, ValuePool pool, Random& random) {
  if (chance(random, 0.6)) {  // people mostly say whole numbers
    return draw_integer(parameter, pool, random);
  }
  const Range range = number_range(parameter);
  const double tenths = std::floor((range.low + random.uniform() * (range.high - range.low)) * 10);
  const JsonValue value = JsonValue::number(std::clamp(tenths / 10, range.low, range.high));
  return {value, value.number_text()};
}

SpokenValue draw_array(const ToolParameter& parameter, ValuePool pool, Random& random) {
  ToolParameter item;
  item.name = parameter.name;
  item.description = parameter.description;
  if (const JsonValue* items = parameter.schema.find("items"); items != nullptr) {
    item.schema = *items;
    if (const JsonValue* type = items->find("type"); type != nullptr && type->is_string()) {
      item.type = type->as_string();
    }
  }
  JsonValue::Array values;
  std::string spoken;
  const std::uint32_t count = 1 + random.below(3);
  for (std::uint32_t i = 0; i < count; ++i) {
    SpokenValue one = draw_value(item, pool, random);
    spoken += (i == 0 ? "" : i + 1 == count ? " and " : ", ") + one.spoken;
    values.push_back(std::move(one.value));
  }
  return {JsonValue::array(std::move(values)), spoken};
}

SpokenValue draw_enum(const ToolParameter& parameter, Random& random) {
  const JsonValue::Array& values = parameter.schema.find("enum")->items();
  const JsonValue& value = values[random.below(static_cast<std::uint32_t>(values.size()))];
  if (value.is_string()) {
    return {value, value.as_string()};
  }
  return {value, write_compact(value, JsonEscapes::kUtf8)};
}

}  // namespace

ValueKind guess_kind(const ToolParameter& parameter) {
  const JsonValue* choices = parameter.schema.find("enum");
  if (choices != nullptr && choices->is_array() && !choices->items().empty()) {
    return ValueKind::kEnum;
  }
  if (parameter.type == "boolean") return ValueKind::kBoolean;
  if (parameter.type == "integer") return ValueKind::kInteger;
  if (parameter.type == "number" || parameter.type == "float") return ValueKind::kNumber;
  if (parameter.type == "array") return ValueKind::kArray;
  if (parameter.type == "object") return ValueKind::kObject;

  struct Clue {
    ValueKind kind;
    std::initializer_list<std::string_view> words;
  };
  // In this order: "song_name" is a song before "name" makes it a person.
  static const std::array<Clue, 21> kClues{{
      {ValueKind::kEmail, {"email", "e-mail"}},
      {ValueKind::kPhone, {"phone"}},
      {ValueKind::kSong, {"song", "track"}},
      {ValueKind::kArtist, {"artist", "singer", "band", "composer", "author"}},
      {ValueKind::kTitle,
       {"title", "album", "movie", "film", "book", "playlist", "show", "event", "label"}},
      {ValueKind::kMessage, {"message", "body", "content", "note", "reminder"}},
      {ValueKind::kDuration, {"duration", "how long"}},
      {ValueKind::kDate, {"date", "day", "when"}},
      {ValueKind::kTime, {"time", "hour"}},
      {ValueKind::kColor, {"color", "colour"}},
      {ValueKind::kRoom, {"room", "area", "zone"}},
      {ValueKind::kCity,
       {"city", "location", "place", "destination", "origin", "country", "town", "address"}},
      {ValueKind::kDevice, {"device", "appliance", "light", "plug"}},
      {ValueKind::kFood, {"food", "dish", "ingredient", "meal", "cuisine", "recipe", "served"}},
      {ValueKind::kProduct, {"product", "item", "goods"}},
      {ValueKind::kLanguage, {"language"}},
      {ValueKind::kCurrency, {"currency"}},
      {ValueKind::kPerson, {"person", "contact", "recipient", "name", "who", "friend", "sender"}},
      {ValueKind::kTitle, {"query", "topic", "subject"}},
      {ValueKind::kMessage, {"text"}},
      {ValueKind::kTitle, {"object"}},
  }};
  const std::string name = lower(parameter.name);
  const std::string description = lower(parameter.description);
  for (const std::string* where : {&name, &description}) {
    for (const Clue& clue : kClues) {
      if (contains_any(*where, clue.words)) {
        return clue.kind;
      }
    }
  }
  return ValueKind::kPhrase;
}

SpokenValue draw_value(ValueKind kind, const ToolParameter& parameter, ValuePool pool,
                       Random& random) {
  switch (kind) {
    case ValueKind::kEnum:
      return draw_enum(parameter, random);
    case ValueKind::kBoolean: {
      const bool value = chance(random, 0.5);
      return {JsonValue::boolean(value), value ? "on" : "off"};
    }
    case ValueKind::kInteger:
      return draw_integer(parameter, pool, random);
    case ValueKind::kNumber:
      return draw_number(parameter, pool, random);
    case ValueKind::kArray:
      return draw_array(parameter, pool, random);
    case ValueKind::kObject:
      return {JsonValue::object(), ""};
    default: {
      const std::string text = draw_from_pool(pool, [&] { return draw_text(kind, random); });
      return {JsonValue::string(text), text};
    }
  }
}

SpokenValue draw_value(const ToolParameter& parameter, ValuePool pool, Random& random) {
  return draw_value(guess_kind(parameter), parameter, pool, random);
}

std::string_view preposition(ValueKind kind, Random& random) {
  const auto either = [&random](std::string_view a, std::string_view b) {
    return chance(random, 0.5) ? a : b;
  };
  switch (kind) {
    case ValueKind::kTime:
      return either("at", "for");
    case ValueKind::kDate:
      return either("on", "for");
    case ValueKind::kDuration:
      return "for";
    case ValueKind::kCity:
    case ValueKind::kRoom:
    case ValueKind::kLanguage:
    case ValueKind::kCurrency:
      return "in";
    case ValueKind::kPerson:
    case ValueKind::kEmail:
    case ValueKind::kPhone:
      return either("to", "for");
    case ValueKind::kArtist:
      return "by";
    case ValueKind::kMessage:
      return either("saying", "that says");
    case ValueKind::kInteger:
    case ValueKind::kNumber:
    case ValueKind::kColor:
    case ValueKind::kEnum:
      return "to";
    case ValueKind::kTitle:
    case ValueKind::kSong:
      return either("called", "named");
    default:
      return "";
  }
}

}  // namespace needle
