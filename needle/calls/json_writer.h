// JSON written as it is said, without a tree of values: for replies, where a value for each member
// would be memory to fetch, to fill and to free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "needle/calls/json_value.h"

namespace needle {

// Compact, raw UTF-8. The caller closes what it opens and names each member of an object; commas
// come by themselves. Used by one thread.
//
//   JsonWriter json;
//   json.begin_object().key("n").integer(2).key("list").begin_array().string("a").end_array();
//   json.end_object().text()  ->  {"n":2,"list":["a"]}
class JsonWriter {
 public:
  JsonWriter() { text_.reserve(kUsual); }

  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);  // written as it is: no quote, no backslash
  JsonWriter& null() { return raw("null"); }
  JsonWriter& integer(std::int64_t value);
  JsonWriter& string(std::string_view value);  // UTF-8; a broken byte becomes U+FFFD
  JsonWriter& value(const JsonValue& value);
  // Three digits after the point; for measured times, of which no more digits are true.
  JsonWriter& thousandths(double value);
  JsonWriter& raw(std::string_view json);  // one whole value

  const std::string& text() const { return text_; }
  std::string take() { return std::move(text_); }

 private:
  static constexpr std::size_t kUsual = 512;
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void begin_value();

  std::string text_;
  bool first_ = true;  // in its array or object, or after its key
};

}  // namespace needle
