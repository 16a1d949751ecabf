#include "needle/calls/json_writer.h"

#include <charconv>
#include <cmath>
#include <iterator>

namespace needle {

void JsonWriter::begin_value() {
  if (!first_) {
    text_.push_back(',');
  }
  first_ = false;
}

JsonWriter& JsonWriter::open(char bracket) {
  begin_value();
  text_.push_back(bracket);
  first_ = true;
  return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
  text_.push_back(bracket);
  first_ = false;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  begin_value();
  text_.push_back('"');
  text_ += name;
  text_ += "\":";
  first_ = true;
  return *this;
}

JsonWriter& JsonWriter::integer(std::int64_t value) {
  char digits[24];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  return raw(std::string_view(digits, static_cast<std::size_t>(end - digits)));
}

JsonWriter& JsonWriter::string(std::string_view value) {
  begin_value();
  append_json_string(text_, value, JsonEscapes::kUtf8);
  return *this;
}

JsonWriter& JsonWriter::value(const JsonValue& value) {
  begin_value();
  append_compact(text_, value, JsonEscapes::kUtf8);
  return *this;
}

JsonWriter& JsonWriter::thousandths(double value) {
  constexpr double kMost = 1e15;
  if (!(std::abs(value) < kMost)) {
    return this->value(JsonValue::number(value));
  }
  const std::int64_t all = std::llround(std::abs(value) * 1000);
  begin_value();
  if (value < 0 && all > 0) {
    text_.push_back('-');
  }
  first_ = true;  // the number goes on
  integer(all / 1000);
  text_.push_back('.');
  for (std::int64_t digit = 100; digit > 0; digit /= 10) {
    text_.push_back(static_cast<char>('0' + all / digit % 10));
  }
  return *this;
}

JsonWriter& JsonWriter::raw(std::string_view json) {
  begin_value();
  text_ += json;
  return *this;
}

}  // namespace needle
