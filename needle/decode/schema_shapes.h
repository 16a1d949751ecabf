// JSON Schema in a normal form that grammars are made from: the alternatives that a value may be,
// each of one type with everything that is asked of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/decode/grammar_options.h"
#include "needle/decode/number_automaton.h"

namespace needle {

// A place of a schema, for messages: "tools[0].parameters.properties.city".
struct SchemaPlace {
  const JsonValue* schema = nullptr;
  std::string path;
};
// All of them hold at once (allOf). Empty: any value.
using SchemaConjunction = std::vector<SchemaPlace>;

enum class JsonType { kNull, kBoolean, kNumber, kString, kArray, kObject };

struct StringShape {
  std::int64_t min_length = 0, max_length = -1;  // in code points; -1: no limit
  std::vector<std::string> patterns, formats;
};
struct ArrayShape {
  std::vector<SchemaConjunction> prefix;
  SchemaConjunction items;  // behind the prefix
  bool closed = false;      // nothing may stand behind the prefix
  std::int64_t min_items = 0, max_items = -1;
  bool unique = false;
};
struct ObjectShape {
  struct Property {
    std::string name;
    SchemaConjunction value;
  };
  std::vector<Property> properties;  // in the order of declaration; required ones are among them
  std::vector<std::string> required;
  bool open = false;        // keys that are not declared may come
  SchemaConjunction extra;  // their values

  // What each schema of a conjunction says of keys, before it is put together.
  struct Part {
    const JsonValue* properties = nullptr;
    const JsonValue* additional = nullptr;
    std::string path;
  };
  std::vector<Part> parts;
};

// What is asked of values of one type; only the member of that type counts.
struct SchemaShape {
  JsonType type = JsonType::kNull;
  std::optional<std::vector<JsonValue>> listed;  // enum and const
  std::optional<bool> grounded;                  // "x-grounded": must it stand in the query?
  NumberSchema number;
  StringShape string;
  ArrayShape array;
  ObjectShape object;
};

// Reads schemas of one document. Not thread-safe.
class SchemaReader {
 public:
  // `root`: what "#/..." refers to. Notes go to `unenforced`, once a place.
  SchemaReader(const JsonValue& root, std::string root_path, std::vector<Unenforced>& unenforced)
      : root_(root), root_path_(std::move(root_path)), unenforced_(unenforced) {}

  // The alternatives of a value; none if it contradicts itself. Throws Error naming the place if a
  // keyword's value makes no sense, a $ref leads nowhere, or there are more than 256 alternatives.
  std::vector<SchemaShape> shapes(const SchemaConjunction& conjunction);

 private:
  struct Item {
    SchemaPlace place;
    bool any_of_done = false, one_of_done = false;
  };
  std::vector<SchemaShape> expand(std::vector<Item> items, int depth);
  std::vector<SchemaShape> expand_choice(const std::vector<Item>& items, std::size_t at, int depth);
  void inline_parts(std::vector<Item>& items) const;
  bool disjoint(const SchemaShape& a, const SchemaShape& b, int depth);
  SchemaPlace resolve(const std::string& reference, const std::string& path) const;
  void note(const std::string& path, std::string_view keyword, std::string reason);
  void note_unsupported(const SchemaPlace& place);

  const JsonValue& root_;
  std::string root_path_;
  std::vector<Unenforced>& unenforced_;
};

}  // namespace needle
