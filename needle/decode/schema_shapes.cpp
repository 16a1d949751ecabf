#include "needle/decode/schema_shapes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

constexpr std::size_t kMostAlternatives = 256;
constexpr int kMostChoices = 64;  // anyOf and oneOf keywords on the way to one shape

[[noreturn]] void fail(const std::string& path, const std::string& message) {
  throw Error(format("{}: {}", path, message));
}

const JsonValue& expect_array(const JsonValue& value, const std::string& path,
                              std::string_view keyword) {
  if (!value.is_array()) {
    fail(path + "." + std::string(keyword), format("expected an array, got {}", excerpt(value)));
  }
  return value;
}

std::int64_t expect_count(const JsonValue& value, const std::string& path,
                          std::string_view keyword) {
  constexpr double kMost = 1e15;
  if (!value.is_number() || !(value.as_double() >= 0) ||
      std::trunc(value.as_double()) != value.as_double()) {
    fail(path + "." + std::string(keyword),
         format("expected a whole number from 0 on, got {}", excerpt(value)));
  }
  return static_cast<std::int64_t>(std::min(value.as_double(), kMost));
}

const JsonValue& expect_number(const JsonValue& value, const std::string& path,
                               std::string_view keyword) {
  if (!value.is_number() || !std::isfinite(value.as_double())) {
    fail(path + "." + std::string(keyword), format("expected a number, got {}", excerpt(value)));
  }
  return value;
}

JsonType type_of(const JsonValue& value) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      return JsonType::kNull;
    case JsonValue::Kind::kBool:
      return JsonType::kBoolean;
    case JsonValue::Kind::kInteger:
    case JsonValue::Kind::kFloat:
      return JsonType::kNumber;
    case JsonValue::Kind::kString:
      return JsonType::kString;
    case JsonValue::Kind::kArray:
      return JsonType::kArray;
    case JsonValue::Kind::kObject:
      return JsonType::kObject;
  }
  return JsonType::kNull;
}

bool is_true(const JsonValue* value) {
  return value != nullptr && value->is_bool() && value->as_bool();
}

void keep_types(const JsonValue& schema, const std::string& path,
                std::vector<SchemaShape>& shapes) {
  const JsonValue* declared = schema.find("type");
  if (declared == nullptr) {
    return;
  }
  std::set<JsonType> types;
  bool integer = false, number = false, any = false;
  const auto add = [&](const JsonValue& name) {
    if (!name.is_string()) {
      fail(path + ".type", format("expected the name of a type, got {}", excerpt(name)));
    }
    const std::string_view type = json_schema_type(name.as_string());
    static const std::map<std::string_view, JsonType> kTypes = {
        {"null", JsonType::kNull},      {"boolean", JsonType::kBoolean},
        {"integer", JsonType::kNumber}, {"number", JsonType::kNumber},
        {"string", JsonType::kString},  {"array", JsonType::kArray},
        {"object", JsonType::kObject}};
    const auto found = kTypes.find(type);
    if (found == kTypes.end()) {
      any = true;
      return;
    }
    types.insert(found->second);
    integer = integer || type == "integer";
    number = number || type == "number";
  };
  if (declared->is_array()) {
    if (declared->items().empty()) {
      fail(path + ".type", "an empty list of types: no value fits");
    }
    std::ranges::for_each(declared->items(), add);
  } else {
    add(*declared);
  }
  if (is_true(schema.find("nullable"))) {
    types.insert(JsonType::kNull);
  }
  if (any) {
    return;
  }
  std::erase_if(shapes, [&](const SchemaShape& shape) { return !types.contains(shape.type); });
  for (SchemaShape& shape : shapes) {
    shape.number.integer = shape.number.integer || (integer && !number);
  }
}

void keep_listed(const JsonValue& schema, const std::string& path,
                 std::vector<SchemaShape>& shapes) {
  std::vector<JsonValue> values;
  if (const JsonValue* listed = schema.find("enum")) {
    values = expect_array(*listed, path, "enum").items();
    if (values.empty()) {
      fail(path + ".enum", "an empty list: no value fits");
    }
  } else if (const JsonValue* constant = schema.find("const")) {
    values = {*constant};
  } else {
    return;
  }
  if (is_true(schema.find("nullable"))) {
    values.emplace_back();
  }
  for (SchemaShape& shape : shapes) {
    std::vector<JsonValue> kept;
    for (const JsonValue& value : values) {
      const bool known =
          !shape.listed || std::ranges::find(*shape.listed, value) != shape.listed->end();
      if (type_of(value) == shape.type && known && std::ranges::find(kept, value) == kept.end()) {
        kept.push_back(value);
      }
    }
    shape.listed = std::move(kept);
  }
  std::erase_if(shapes,
                [](const SchemaShape& shape) { return shape.listed && shape.listed->empty(); });
}

void apply_number(const JsonValue& schema, const std::string& path, NumberSchema& number) {
  const auto bound = [&](std::string_view keyword, std::string_view exclusive, auto& bounds) {
    const JsonValue* flag = schema.find(exclusive);
    if (const JsonValue* value = schema.find(keyword)) {
      bounds.push_back({expect_number(*value, path, keyword).number_text(), is_true(flag)});
    }
    if (flag != nullptr && !flag->is_bool()) {
      bounds.push_back({expect_number(*flag, path, exclusive).number_text(), true});
    }
  };
  bound("minimum", "exclusiveMinimum", number.minima);
  bound("maximum", "exclusiveMaximum", number.maxima);
  if (const JsonValue* divisor = schema.find("multipleOf")) {
    if (!(expect_number(*divisor, path, "multipleOf").as_double() > 0)) {
      fail(path + ".multipleOf", format("expected a number above 0, got {}", excerpt(*divisor)));
    }
    number.multiples_of.push_back(divisor->number_text());
  }
}

void raise(std::int64_t& least, std::int64_t value) { least = std::max(least, value); }
void lower(std::int64_t& most, std::int64_t value) {
  most = most < 0 ? value : std::min(most, value);
}

void apply_string(const JsonValue& schema, const std::string& path, StringShape& string) {
  if (const JsonValue* least = schema.find("minLength")) {
    raise(string.min_length, expect_count(*least, path, "minLength"));
  }
  if (const JsonValue* most = schema.find("maxLength")) {
    lower(string.max_length, expect_count(*most, path, "maxLength"));
  }
  for (const auto& [keyword, list] :
       {std::pair("pattern", &string.patterns), {"format", &string.formats}}) {
    if (const JsonValue* text = schema.find(keyword)) {
      if (!text->is_string()) {
        fail(path + "." + keyword, format("expected a string, got {}", excerpt(*text)));
      }
      list->push_back(text->as_string());
    }
  }
}

void apply_array(const JsonValue& schema, const std::string& path, ArrayShape& array) {
  if (const JsonValue* least = schema.find("minItems")) {
    raise(array.min_items, expect_count(*least, path, "minItems"));
  }
  if (const JsonValue* most = schema.find("maxItems")) {
    lower(array.max_items, expect_count(*most, path, "maxItems"));
  }
  array.unique = array.unique || is_true(schema.find("uniqueItems"));
  const JsonValue* prefix = schema.find("prefixItems");
  const JsonValue* items = schema.find("items");
  std::string prefix_path = path + ".prefixItems", items_path = path + ".items";
  if (items != nullptr && items->is_array()) {  // before draft 2020
    prefix = items;
    prefix_path = items_path;
    items = schema.find("additionalItems");
    items_path = path + ".additionalItems";
  }
  const std::size_t own =
      prefix != nullptr ? expect_array(*prefix, path, "prefixItems").items().size() : 0;
  while (array.prefix.size() < own) {
    array.prefix.push_back(array.items);
  }
  for (std::size_t i = 0; i < array.prefix.size(); ++i) {
    if (i < own) {
      array.prefix[i].push_back({&prefix->items()[i], format("{}[{}]", prefix_path, i)});
    } else if (items != nullptr) {
      array.prefix[i].push_back({items, items_path});
    }
  }
  if (items != nullptr && items->is_bool() && !items->as_bool()) {
    array.closed = true;
    lower(array.max_items, static_cast<std::int64_t>(own));
  } else if (items != nullptr && !items->is_bool()) {
    array.items.push_back({items, items_path});
  }
}

void apply_object(const JsonValue& schema, const std::string& path, ObjectShape& object) {
  const JsonValue* properties = schema.find("properties");
  if (properties != nullptr && !properties->is_object()) {
    fail(path + ".properties", format("expected an object, got {}", excerpt(*properties)));
  }
  object.parts.push_back({properties, schema.find("additionalProperties"), path});
  // A flat declaration says "required": true beside a parameter's type: that is the parent's
  // affair.
  if (const JsonValue* required = schema.find("required");
      required != nullptr && !required->is_bool()) {
    for (const JsonValue& name : expect_array(*required, path, "required").items()) {
      if (!name.is_string()) {
        fail(path + ".required", format("expected names of properties, got {}", excerpt(name)));
      }
      if (std::ranges::find(object.required, name.as_string()) == object.required.end()) {
        object.required.push_back(name.as_string());
      }
    }
  }
}

// Where no schema says anything of further keys, they may come only if none are declared.
void put_together(ObjectShape& object) {
  const auto refuses = [](const ObjectShape::Part& part) {
    return part.additional != nullptr && part.additional->is_bool() && !part.additional->as_bool();
  };
  const auto own = [](const ObjectShape::Part& part, const std::string& name) {
    return part.properties != nullptr ? part.properties->find(name) : nullptr;
  };
  const auto add = [&](const std::string& name) {
    if (std::ranges::find(object.properties, name, &ObjectShape::Property::name) !=
        object.properties.end()) {
      return true;
    }
    SchemaConjunction value;
    for (const ObjectShape::Part& part : object.parts) {
      if (const JsonValue* schema = own(part, name)) {
        value.push_back({schema, part.path + ".properties." + name});
      } else if (refuses(part)) {
        return false;
      } else if (part.additional != nullptr) {
        value.push_back({part.additional, part.path + ".additionalProperties"});
      }
    }
    object.properties.push_back({name, std::move(value)});
    return true;
  };
  bool declared = false, invited = false, refused = false;
  for (const ObjectShape::Part& part : object.parts) {
    declared = declared || part.properties != nullptr;
    refused = refused || refuses(part);
    if (part.additional != nullptr && !refuses(part)) {
      invited = true;
      object.extra.push_back({part.additional, part.path + ".additionalProperties"});
    }
    if (part.properties != nullptr) {
      for (const auto& [name, schema] : part.properties->members()) {
        add(name);
      }
    }
  }
  for (const std::string& name : object.required) {
    if (!add(name)) {
      const std::string path = object.parts.empty() ? "" : object.parts.front().path;
      fail(path + ".required",
           format(
               "'{}' is required, but not among the properties, and additionalProperties is false",
               name));
    }
  }
  object.open = !refused && (invited || !declared);
}

}  // namespace

std::vector<SchemaShape> SchemaReader::shapes(const SchemaConjunction& conjunction) {
  std::vector<Item> items;
  for (const SchemaPlace& place : conjunction) {
    items.push_back({.place = place});
  }
  std::vector<SchemaShape> shapes = expand(std::move(items), 0);
  for (SchemaShape& shape : shapes) {
    put_together(shape.object);
  }
  return shapes;
}

// $ref and allOf: what they name holds beside the rest.
void SchemaReader::inline_parts(std::vector<Item>& items) const {
  for (std::size_t i = 0; i < items.size(); ++i) {
    const SchemaPlace place = items[i].place;
    const auto add = [&](const SchemaPlace& part) {
      if (std::ranges::any_of(items,
                              [&](const Item& item) { return item.place.schema == part.schema; })) {
        return false;
      }
      if (items.size() >= kMostAlternatives) {
        fail(place.path, "too many schemas that hold at once");
      }
      items.push_back({.place = part});
      return true;
    };
    if (const JsonValue* reference = place.schema->find("$ref")) {
      if (!reference->is_string()) {
        fail(place.path + ".$ref", format("expected a string, got {}", excerpt(*reference)));
      }
      const SchemaPlace target = resolve(reference->as_string(), place.path);
      if (target.schema == place.schema) {
        fail(place.path + ".$ref", "it refers to itself: no value is described");
      }
      add(target);
    }
    if (const JsonValue* all = place.schema->find("allOf")) {
      const JsonValue::Array& parts = expect_array(*all, place.path, "allOf").items();
      for (std::size_t part = 0; part < parts.size(); ++part) {
        add({&parts[part], format("{}.allOf[{}]", place.path, part)});
      }
    }
  }
}

std::vector<SchemaShape> SchemaReader::expand(std::vector<Item> items, int depth) {
  for (const Item& item : items) {
    if (!item.place.schema->is_object() && !item.place.schema->is_bool()) {
      fail(item.place.path,
           format("expected a schema (an object), got {}", excerpt(*item.place.schema)));
    }
  }
  inline_parts(items);
  for (std::size_t i = 0; i < items.size(); ++i) {
    const JsonValue& schema = *items[i].place.schema;
    if (!schema.is_object() && !schema.is_bool()) {
      fail(items[i].place.path, format("expected a schema (an object), got {}", excerpt(schema)));
    }
    if ((!items[i].any_of_done && schema.find("anyOf") != nullptr) ||
        (!items[i].one_of_done && schema.find("oneOf") != nullptr)) {
      return expand_choice(items, i, depth);
    }
  }
  std::vector<SchemaShape> shapes;
  for (const JsonType type : {JsonType::kNull, JsonType::kBoolean, JsonType::kNumber,
                              JsonType::kString, JsonType::kArray, JsonType::kObject}) {
    shapes.push_back({.type = type});
  }
  for (const Item& item : items) {
    const auto& [schema, path] = item.place;
    if (schema->is_bool()) {
      if (!schema->as_bool()) {
        shapes.clear();
      }
      continue;
    }
    keep_types(*schema, path, shapes);
    keep_listed(*schema, path, shapes);
    const JsonValue* grounded = schema->find("x-grounded");
    for (SchemaShape& shape : shapes) {
      if (grounded != nullptr && grounded->is_bool()) {
        shape.grounded = grounded->as_bool();
      }
      apply_number(*schema, path, shape.number);
      apply_string(*schema, path, shape.string);
      apply_array(*schema, path, shape.array);
      apply_object(*schema, path, shape.object);
    }
    note_unsupported(item.place);
  }
  return shapes;
}

std::vector<SchemaShape> SchemaReader::expand_choice(const std::vector<Item>& items, std::size_t at,
                                                     int depth) {
  const SchemaPlace& place = items[at].place;
  const bool any_of = !items[at].any_of_done && place.schema->find("anyOf") != nullptr;
  const std::string keyword = any_of ? "anyOf" : "oneOf";
  const JsonValue::Array& alternatives =
      expect_array(*place.schema->find(keyword), place.path, keyword).items();
  if (alternatives.empty()) {
    fail(place.path + "." + keyword, "an empty list: no value fits");
  }
  if (depth >= kMostChoices) {
    fail(place.path + "." + keyword, format("more than {} choices within one value", kMostChoices));
  }
  std::vector<SchemaShape> all;
  std::vector<std::vector<SchemaShape>> apart;
  for (std::size_t i = 0; i < alternatives.size(); ++i) {
    std::vector<Item> chosen = items;
    (any_of ? chosen[at].any_of_done : chosen[at].one_of_done) = true;
    chosen.push_back({.place = {&alternatives[i], format("{}.{}[{}]", place.path, keyword, i)}});
    std::vector<SchemaShape> shapes = expand(std::move(chosen), depth + 1);
    if (all.size() + shapes.size() > kMostAlternatives) {
      fail(place.path + "." + keyword, format("more than {} alternatives", kMostAlternatives));
    }
    all.insert(all.end(), shapes.begin(), shapes.end());
    apart.push_back(std::move(shapes));
  }
  for (std::size_t a = 0; !any_of && a < apart.size(); ++a) {
    for (std::size_t b = a + 1; b < apart.size(); ++b) {
      for (const SchemaShape& one : apart[a]) {
        for (const SchemaShape& other : apart[b]) {
          if (!disjoint(one, other, 0)) {
            note(place.path, keyword,
                 format("alternatives {} and {} may both fit one value; enforced as anyOf", a, b));
          }
        }
      }
    }
  }
  return all;
}

// Whether provably no value fits both.
bool SchemaReader::disjoint(const SchemaShape& a, const SchemaShape& b, int depth) {
  if (a.type != b.type) {
    return true;
  }
  if (a.listed && b.listed) {
    return std::ranges::none_of(*a.listed, [&](const JsonValue& value) {
      return std::ranges::find(*b.listed, value) != b.listed->end();
    });
  }
  if (a.type == JsonType::kNumber) {
    NumberSchema both = a.number;
    both.integer = a.number.integer || b.number.integer;
    both.minima.insert(both.minima.end(), b.number.minima.begin(), b.number.minima.end());
    both.maxima.insert(both.maxima.end(), b.number.maxima.begin(), b.number.maxima.end());
    return !NumberAutomaton::make(both);
  }
  if (a.type != JsonType::kObject || depth > 2) {
    return false;
  }
  ObjectShape in_a = a.object, in_b = b.object;
  put_together(in_a);
  put_together(in_b);
  return std::ranges::any_of(in_a.required, [&](const std::string& name) {
    if (std::ranges::find(in_b.required, name) == in_b.required.end()) {
      return false;
    }
    const auto value = [&](const ObjectShape& object) {
      return shapes(
          std::ranges::find(object.properties, name, &ObjectShape::Property::name)->value);
    };
    const std::vector<SchemaShape> of_a = value(in_a), of_b = value(in_b);
    return std::ranges::all_of(of_a, [&](const SchemaShape& one) {
      return std::ranges::all_of(
          of_b, [&](const SchemaShape& other) { return disjoint(one, other, depth + 1); });
    });
  });
}

// "#", "#/$defs/name": a JSON pointer (RFC 6901) into this document.
SchemaPlace SchemaReader::resolve(const std::string& reference, const std::string& path) const {
  const auto bad = [&](const std::string& why) {
    fail(path + ".$ref", format("'{}': {}", reference, why));
  };
  if (!reference.starts_with("#") || (reference.size() > 1 && reference[1] != '/')) {
    bad("only references into the same document (\"#/...\") are supported");
  }
  SchemaPlace place{&root_, root_path_};
  std::string_view rest = std::string_view(reference).substr(1);
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('/', 1), rest.size());
    std::string key(rest.substr(1, end - 1));
    rest.remove_prefix(end);
    for (const auto& [code, character] : {std::pair("~1", "/"), {"~0", "~"}}) {
      for (auto at = key.find(code); at != std::string::npos; at = key.find(code, at + 1)) {
        key.replace(at, 2, character);
      }
    }
    const JsonValue* next = place.schema->find(key);
    if (place.schema->is_array() && !key.empty() && key.size() < 6 &&
        key.find_first_not_of("0123456789") == std::string::npos &&
        std::stoul(key) < place.schema->items().size()) {
      next = &place.schema->items()[std::stoul(key)];
    }
    if (next == nullptr) {
      bad(format("there is no '{}' in {}", key, place.path));
    }
    place = {next, place.path + "." + key};
  }
  return place;
}

void SchemaReader::note(const std::string& path, std::string_view keyword, std::string reason) {
  const bool known = std::ranges::any_of(unenforced_, [&](const Unenforced& one) {
    return one.path == path && one.keyword == keyword;
  });
  if (!known) {
    unenforced_.push_back({path, std::string(keyword), std::move(reason)});
  }
}

void SchemaReader::note_unsupported(const SchemaPlace& place) {
  constexpr std::array<std::string_view, 18> kUnsupported = {"not",
                                                             "if",
                                                             "contains",
                                                             "minContains",
                                                             "maxContains",
                                                             "minProperties",
                                                             "maxProperties",
                                                             "patternProperties",
                                                             "propertyNames",
                                                             "dependentRequired",
                                                             "dependencies",
                                                             "dependentSchemas",
                                                             "unevaluatedItems",
                                                             "unevaluatedProperties",
                                                             "$dynamicRef",
                                                             "$recursiveRef",
                                                             "contentEncoding",
                                                             "contentMediaType"};
  for (const std::string_view keyword : kUnsupported) {
    const JsonValue* value = place.schema->find(keyword);
    // Keys that are not declared do not come anyway.
    if (value != nullptr && !(keyword.starts_with("unevaluated") && value->is_bool())) {
      note(place.path, keyword, "not supported");
    }
  }
}

}  // namespace needle
