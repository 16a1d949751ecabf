// The JSON that the model reads and writes: keeps key order and the digits of every number.
//
// Behaves as Python's json module does in the reference (specification, section 4): of duplicate
// keys the last value stays at the first one's place, NaN and Infinity pass, integers keep all
// digits, floats print in their shortest form (1e5 -> 100000.0, 1e22 -> 1e+22).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace needle {

class JsonValue {
 public:
  enum class Kind { kNull, kBool, kInteger, kFloat, kString, kArray, kObject };
  using Array = std::vector<JsonValue>;
  using Object = std::vector<std::pair<std::string, JsonValue>>;  // insertion order, unique keys

  JsonValue() = default;  // null
  static JsonValue boolean(bool value);
  static JsonValue integer(std::int64_t value);
  static JsonValue number(double value);
  // From a JSON number literal: integers keep their digits ("-0" is 0), floats take Python's
  // shortest form. "NaN", "Infinity" and "-Infinity" are floats. Throws needle::Error if the text
  // is none of these.
  static JsonValue number_from_text(std::string_view literal);
  static JsonValue string(std::string value);  // UTF-8
  static JsonValue array(Array items = {});
  static JsonValue object(Object members = {});

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_integer() const { return kind_ == Kind::kInteger; }
  bool is_number() const { return kind_ == Kind::kInteger || kind_ == Kind::kFloat; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_object() const { return kind_ == Kind::kObject; }

  // Accessors throw needle::Error when the kind is another.
  bool as_bool() const;
  std::optional<std::int64_t> as_int64() const;  // of an integer; nothing if it does not fit
  double as_double() const;                      // of an integer or a float
  const std::string& number_text() const;        // canonical text of a number, as Python prints it
  const std::string& as_string() const;
  const Array& items() const;
  Array& items();
  const Object& members() const;
  Object& members();
  const JsonValue* find(std::string_view key) const;  // nullptr if absent or not an object
  JsonValue* find(std::string_view key);
  void set(std::string_view key,
           JsonValue value);  // replaces in place or appends; the value must be an object

  // Equal as Python compares parsed text except that 5, 5.0 and "5" differ; key order does not
  // matter.
  bool operator==(const JsonValue& other) const;

 private:
  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  std::string text_;  // of a string or a number
  Array items_;
  Object members_;
};

// For messages: "null", "a boolean", "an integer", "a float", "a string", "an array", "an object".
std::string_view kind_name(JsonValue::Kind kind);

struct JsonParseResult {
  std::optional<JsonValue> value;  // nothing if the text is not JSON
  std::string error;               // "line 1 column 5: expected ','"
};

inline constexpr int kMaxJsonDepth = 200;
inline constexpr std::size_t kUsualMembers = 4;  // room that an object's first member makes

// Strict JSON plus NaN, Infinity and -Infinity, as Python's json.loads. Nesting over 200 is an
// error, and so is text that is not UTF-8. Lone surrogate escapes are kept as Python keeps them and
// written back as the same escape (internally as 3-byte WTF-8).
JsonParseResult parse_json_value(std::string_view text);

// Length of the number at the start of `text`: the longest
// -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?; 0 if none.
std::size_t json_number_length(std::string_view text);

// Bytes at the start of `text` that stand for themselves in a JSON string, whatever the escapes:
// printable ASCII except quotes and backslashes.
std::size_t json_plain_length(std::string_view text);

enum class JsonEscapes { kAscii, kUtf8 };  // "\u00e9" as the reference writes it, or raw UTF-8

// The writers always give valid UTF-8: a broken byte inside a string becomes U+FFFD.

// Without spaces: {"a":1,"b":[true,null]}.
std::string write_compact(const JsonValue& value, JsonEscapes escapes = JsonEscapes::kAscii);
// The same at the end of `out`; and a string with its quotes.
void append_compact(std::string& out, const JsonValue& value, JsonEscapes escapes);
void append_json_string(std::string& out, std::string_view text, JsonEscapes escapes);
// Python's default separators: {"a": 1, "b": [true, null]}.
std::string write_spaced(const JsonValue& value, JsonEscapes escapes = JsonEscapes::kAscii);
// Keys sorted at every depth: equal values have equal text.
std::string write_canonical(const JsonValue& value);

// A value for a message: compact ASCII, cut at `most_bytes`.
std::string excerpt(const JsonValue& value, std::size_t most_bytes = 60);

// parse + write_compact; text that is not JSON is returned unchanged.
std::string compact_json_text(std::string_view text, JsonEscapes escapes = JsonEscapes::kAscii);

}  // namespace needle
