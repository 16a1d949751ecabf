// Values for the parameters of a tool, with the words by which a person would say them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "needle/calls/tool.h"
#include "needle/core/enum_names.h"
#include "needle/core/random.h"

namespace needle {

// What a parameter is about, guessed from its name, type, enum and description.
enum class ValueKind {
  kEnum,
  kBoolean,
  kInteger,
  kNumber,
  kTime,
  kDate,
  kDuration,
  kCity,
  kPerson,
  kRoom,
  kColor,
  kDevice,
  kSong,
  kArtist,
  kTitle,
  kMessage,
  kFood,
  kProduct,
  kLanguage,
  kCurrency,
  kEmail,
  kPhone,
  kPhrase,
  kArray,
  kObject,
};

// Values can be split in two disjoint halves, so that a test never shows a value that was trained
// on.
enum class ValuePool { kAll, kTrain, kTest };
inline constexpr EnumNames<ValuePool, 3> kValuePoolNames{
    {{{ValuePool::kAll, "all"}, {ValuePool::kTrain, "train"}, {ValuePool::kTest, "test"}}}};
template <>
struct EnumTable<ValuePool> {
  static constexpr const auto& value = kValuePoolNames;
};

struct SpokenValue {
  JsonValue value;  // as it stands in the call
  std::string
      spoken;  // as it stands in the query: the same text, or words that mean it (booleans, arrays)
};

ValueKind guess_kind(const ToolParameter& parameter);

// Draws a value that satisfies the parameter's schema (type, enum, minimum, maximum). Strings are
// said verbatim.
SpokenValue draw_value(const ToolParameter& parameter, ValuePool pool, Random& random);
SpokenValue draw_value(ValueKind kind, const ToolParameter& parameter, ValuePool pool,
                       Random& random);

// The preposition that introduces such a value in a request: "in" for a city, "at" for a time; ""
// for none.
std::string_view preposition(ValueKind kind, Random& random);

}  // namespace needle
