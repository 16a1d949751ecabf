// Word lists of the row generator: written for this project, plain everyday words.
#pragma once

#include <span>
#include <string_view>

namespace needle::words {

extern const std::span<const std::string_view> kWeekdays;
extern const std::span<const std::string_view> kMonths;
extern const std::span<const std::string_view> kFirstNames;
extern const std::span<const std::string_view> kLastNames;
extern const std::span<const std::string_view> kCities;
extern const std::span<const std::string_view> kRooms;
extern const std::span<const std::string_view> kColors;
extern const std::span<const std::string_view> kDevices;
extern const std::span<const std::string_view> kFoods;
extern const std::span<const std::string_view> kFoodAdjectives;
extern const std::span<const std::string_view> kProducts;
extern const std::span<const std::string_view> kLanguages;
extern const std::span<const std::string_view> kCurrencies;
extern const std::span<const std::string_view> kAdjectives;
extern const std::span<const std::string_view> kNouns;
extern const std::span<const std::string_view> kSmallTalk;  // requests that no tool serves

}  // namespace needle::words
