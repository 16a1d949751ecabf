// Tools and schemas to grammar nodes: the making half of grammar.h.
#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "needle/calls/tool.h"
#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/decode/grammar.h"
#include "needle/decode/pattern.h"

namespace needle {
namespace {

constexpr std::int64_t kMostUniqueItems = 64;    // different values that a unique array may have
constexpr std::size_t kMostNodes = 200'000;      // of a grammar
constexpr std::int32_t kMostTokens = 1'000'000;  // of a shortest value; more cannot be spelled

std::uint64_t hash_text(std::string_view text) {
  std::uint64_t hash = kTextHash;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length_at(text, at);
    hash = hash_code_point(hash, length == 0 ? 0xFFFD : utf8_code_point_at(text, at));
    at += std::max<std::size_t>(1, length);
  }
  return hash;
}

// A tool's parameters as one JSON Schema.
JsonValue schema_of(const Tool& tool) {
  const JsonValue* declared = tool.declared.find("parameters");
  if (declared != nullptr && is_json_schema(*declared)) {
    return *declared;
  }
  JsonValue properties = JsonValue::object();
  JsonValue required = JsonValue::array();
  for (const ToolParameter& parameter : tool.parameters) {
    properties.set(parameter.name, parameter.schema);
    if (parameter.required) {
      required.items().push_back(JsonValue::string(parameter.name));
    }
  }
  JsonValue schema = JsonValue::object();
  schema.set("type", JsonValue::string("object"));
  schema.set("properties", std::move(properties));
  schema.set("required", std::move(required));
  return schema;
}

}  // namespace

class GrammarCompiler {
 public:
  GrammarCompiler(Grammar& grammar, const GrammarOptions& options)
      : grammar_(grammar), options_(options) {
    grammar_.automata_.push_back(TextAutomaton::anything());
  }

  void compile_tools(std::string_view tools_json) {
    const std::vector<Tool> tools = parse_tools_text(tools_json);
    std::vector<std::pair<std::string, std::size_t>> order;
    for (std::size_t i = 0; i < tools.size(); ++i) {
      order.emplace_back(tools[i].name, i);
    }
    std::ranges::sort(order);
    Grammar::Calls calls;
    std::vector<std::pair<std::string, std::size_t>> heads;
    for (std::size_t i = 0; i < order.size(); ++i) {
      const auto& [name, index] = order[i];
      if (i > 0 && order[i - 1].first == name) {
        throw Error(format("tools[{}].name: '{}' is the name of tools[{}], too; names must differ",
                           index, name, order[i - 1].second));
      }
      heads.emplace_back("{\"name\":" + write_compact(JsonValue::string(name), options_.escapes) +
                             ",\"arguments\":",
                         index);
    }
    std::ranges::sort(heads);
    std::vector<std::string> texts;
    for (const auto& [head, index] : heads) {
      const Tool& tool = tools[index];
      calls.arguments.push_back(arguments_of(tool, index));
      calls.names.push_back(tool.name);
      texts.push_back(head);
    }
    calls.heads = literals(std::move(texts));
    grammar_.calls_ = std::move(calls);
  }

  void compile_schema(const JsonValue& schema) {
    grammar_.root_ = root_value(schema, "schema", "");
  }

 private:
  using Value = Grammar::Value;

  Value arguments_of(const Tool& tool, std::size_t index) {
    // Kept until the grammar is made: schemas are identified by their addresses.
    const JsonValue& schema = schemas_.emplace_back(schema_of(tool));
    tool_grounded_ = std::ranges::find(options_.grounded, tool.name) != options_.grounded.end();
    return root_value(schema, format("tools[{}].parameters", index), tool.name);
  }

  Value root_value(const JsonValue& schema, const std::string& path, const std::string& tool) {
    SchemaReader reader(schema, path, grammar_.unenforced_);
    reader_ = &reader;
    tool_ = tool;
    made_.clear();
    recursion_left_ = options_.recursion_depth;
    std::optional<Value> value = compile({{&schema, path}}, path);
    if (!value) {
      throw Error(format("{}: it holds itself without an end", path));
    }
    return *std::move(value);
  }

  // Nothing where the schema would hold itself too often.
  std::optional<Value> compile(const SchemaConjunction& conjunction, const std::string& path) {
    std::vector<const JsonValue*> key;
    for (const SchemaPlace& place : conjunction) {
      key.push_back(place.schema);
    }
    std::ranges::sort(key);
    const bool again = open_.contains(key);
    if (again && recursion_left_ == 0) {
      return std::nullopt;
    }
    const int outer = recursion_left_;
    recursion_left_ -= again ? 1 : 0;
    const std::pair made_key(key, recursion_left_);
    std::optional<Value> value;
    if (const auto known = made_.find(made_key); known != made_.end()) {
      value = known->second;
    } else {
      const bool first = open_.insert(key).second;
      value = compile_shapes(reader_->shapes(conjunction), path);
      if (first) {
        open_.erase(key);
      }
      made_.emplace(made_key, value);
    }
    recursion_left_ = outer;
    return value;
  }

  std::optional<Value> compile_shapes(const std::vector<SchemaShape>& shapes,
                                      const std::string& path) {
    Value value;
    std::vector<std::string> listed;
    std::string contradiction = "no value fits: what holds at once contradicts itself";
    bool cut = false;  // an alternative holds itself too often
    std::int64_t fewest = std::numeric_limits<std::int64_t>::max();
    const auto add = [&](Grammar::Kind kind, std::int32_t index, std::int64_t tokens) {
      value.nodes.push_back({kind, index});
      fewest = std::min(fewest, tokens);
    };
    for (const SchemaShape& shape : shapes) {
      try {
        if (shape.listed || shape.type == JsonType::kNull || shape.type == JsonType::kBoolean) {
          list(shape, path, listed);
        } else if (shape.type == JsonType::kNumber) {
          add_number(shape, path, add);
        } else if (shape.type == JsonType::kString) {
          add_string(shape, path, add);
        } else if (shape.type == JsonType::kArray) {
          cut = !add_array(shape.array, path, add) || cut;
        } else {
          cut = !add_object(shape.object, path, add) || cut;
        }
      } catch (const Contradiction& found) {
        contradiction = found.message;
      }
    }
    if (!listed.empty()) {
      grammar_.literals_.push_back(literals(std::move(listed)));
      const Grammar::Literals& made = grammar_.literals_.back();
      add(Grammar::Kind::kLiterals, static_cast<std::int32_t>(grammar_.literals_.size()) - 1,
          fewest_of(made));
    }
    if (value.nodes.empty()) {
      if (cut) {
        return std::nullopt;
      }
      throw Error(format("{}: {}", path, contradiction));
    }
    value.tokens = fewest;
    const std::size_t nodes = grammar_.literals_.size() + grammar_.numbers_.size() +
                              grammar_.strings_.size() + grammar_.arrays_.size() +
                              grammar_.objects_.size();
    if (nodes > kMostNodes) {
      throw Error(format("{}: the schema is too large: more than {} places", path, kMostNodes));
    }
    return value;
  }

  struct Contradiction {
    std::string message;
  };

  // --- Values that are written out ---

  void list(const SchemaShape& shape, const std::string& path, std::vector<std::string>& listed) {
    std::vector<JsonValue> values;
    if (shape.listed) {
      values = *shape.listed;
    } else if (shape.type == JsonType::kNull) {
      values = {JsonValue()};
    } else {
      values = {JsonValue::boolean(false), JsonValue::boolean(true)};
    }
    bool any = false;
    for (const JsonValue& value : values) {
      if (fits(shape, value, path)) {
        listed.push_back(write_compact(value, options_.escapes));
        any = true;
      }
    }
    if (!any) {
      throw Contradiction{"no listed value fits the rest of the schema"};
    }
  }

  // Of values in `enum` and `const`: what else the schema says of their type.
  bool fits(const SchemaShape& shape, const JsonValue& value, const std::string& path) {
    if (value.is_number()) {
      const std::optional<NumberAutomaton> automaton = number_automaton(shape.number);
      const NumberSchema& schema = shape.number;
      const bool free = !schema.integer && schema.minima.empty() && schema.maxima.empty() &&
                        schema.multiples_of.empty();
      return std::isfinite(value.as_double()) &&
             (free || (automaton && automaton->accepts(value.number_text())));
    }
    if (value.is_string()) {
      if (!is_valid_utf8(value.as_string())) {
        return false;  // a lone surrogate
      }
      const std::optional<TextAutomaton> automaton =
          text_automaton(shape.string, path, /*lengths=*/true);
      return !automaton || automaton->accepts(value.as_string());
    }
    const bool more =
        (value.is_array() && (!shape.array.prefix.empty() || !shape.array.items.empty() ||
                              shape.array.min_items > 0 || shape.array.max_items >= 0)) ||
        (value.is_object() && !shape.object.properties.empty());
    if (more) {
      note(path, "enum", "listed arrays and objects are not held against the rest of the schema");
    }
    return true;
  }

  Grammar::Literals literals(std::vector<std::string> texts) const {
    std::ranges::sort(texts);
    texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
    Grammar::Literals made{.texts = std::move(texts), .tokens = {}};
    for (const std::string& text : made.texts) {
      made.tokens.push_back(grammar_.trie_->fewest_tokens(text));
    }
    return made;
  }

  // The tokens of a cost, whatever grounded values come to.
  static std::int64_t plain(std::int64_t cost) { return cost % Grammar::kGroundedValue; }

  static std::int32_t fewest_of(const Grammar::Literals& all) {
    std::int32_t fewest = kMostTokens;
    for (const auto& tokens : all.tokens) {
      fewest = std::min(fewest, tokens.front());
    }
    return fewest;
  }

  // --- Numbers and strings ---

  static std::optional<NumberAutomaton> number_automaton(const NumberSchema& schema) {
    try {
      return NumberAutomaton::make(schema);
    } catch (const Error& error) {
      throw Contradiction{error.what()};
    }
  }

  template <typename Add>
  void add_number(const SchemaShape& shape, const std::string& path, Add add) {
    const std::optional<NumberAutomaton> automaton = number_automaton(shape.number);
    if (!automaton) {
      throw Contradiction{"no number fits: minimum, maximum and multipleOf contradict each other"};
    }
    const bool grounded = shape.grounded.value_or(is_asked_for(path));
    grammar_.has_grounded_ = grammar_.has_grounded_ || grounded;
    grammar_.numbers_.push_back({*automaton, grounded});
    add(Grammar::Kind::kNumber, static_cast<std::int32_t>(grammar_.numbers_.size()) - 1,
        automaton->shortest_end(automaton->start()) + (grounded ? Grammar::kGroundedValue : 0));
  }

  // What patterns and formats (and lengths, if asked for) leave; nothing if they ask for nothing.
  std::optional<TextAutomaton> text_automaton(const StringShape& shape, const std::string& path,
                                              bool lengths) {
    std::optional<TextAutomaton> all;
    const auto narrow = [&](const std::string& pattern, std::string_view keyword) {
      const CompiledPattern compiled = compile_pattern(pattern);
      if (!compiled.automaton) {
        if (compiled.problem.message == kNoText) {
          throw Contradiction{format("no text fits the pattern {}", pattern)};
        }
        note(path, keyword, compiled.problem.message);
        return;
      }
      try {
        const std::optional<TextAutomaton> both =
            all ? all->intersect(*compiled.automaton) : compiled.automaton;
        if (!both) {
          throw Contradiction{"no text fits all patterns and formats"};
        }
        all = both;
      } catch (const Error& error) {
        note(path, keyword, error.what());
      }
    };
    for (const std::string& pattern : shape.patterns) {
      narrow(pattern, "pattern");
    }
    for (const std::string& name : shape.formats) {
      if (const std::optional<std::string> pattern = pattern_of_format(name)) {
        narrow(*pattern, "format");
      } else {
        note(path, "format", format("'{}' is not known", name));
      }
    }
    const bool limited = shape.min_length > 0 || shape.max_length >= 0;
    if (limited && (all || lengths)) {
      try {
        all = (all ? *all : TextAutomaton::anything())
                  .with_length(shape.min_length, shape.max_length);
      } catch (const Error& error) {
        note(path, shape.max_length >= 0 ? "maxLength" : "minLength", error.what());
        return all;
      }
      if (!all) {
        throw Contradiction{"no text has these lengths and fits the pattern or format"};
      }
    }
    return all;
  }

  // Named among the options' parameters.
  bool is_asked_for(const std::string& path) const {
    const std::string name = tool_ + path.substr(std::min(path.rfind('.'), path.size()));
    return tool_grounded_ || std::ranges::find(options_.grounded, name) != options_.grounded.end();
  }

  bool is_grounded(const SchemaShape& shape, const std::string& path) const {
    const StringShape& string = shape.string;
    const bool plain = string.patterns.empty() && string.formats.empty() &&
                       string.min_length <= 1 && string.max_length < 0;
    const bool wanted = options_.grounding == Grounding::kAuto || is_asked_for(path);
    return plain && shape.grounded.value_or(wanted);
  }

  template <typename Add>
  void add_string(const SchemaShape& whole, const std::string& path, Add add) {
    const StringShape& shape = whole.string;
    if (shape.max_length >= 0 && shape.min_length > shape.max_length) {
      throw Contradiction{
          format("minLength {} is above maxLength {}", shape.min_length, shape.max_length)};
    }
    if (shape.min_length >= kMostTokens) {
      throw Contradiction{format("minLength {}: no answer can be that long", shape.min_length)};
    }
    Grammar::String string{.min_length = shape.min_length, .max_length = shape.max_length};
    if (std::optional<TextAutomaton> automaton = text_automaton(shape, path, /*lengths=*/false)) {
      string = {.automaton = static_cast<std::int32_t>(grammar_.automata_.size())};
      grammar_.automata_.push_back(*std::move(automaton));
    }
    string.grounded = is_grounded(whole, path);
    grammar_.has_grounded_ = grammar_.has_grounded_ || string.grounded;
    const std::int32_t inside =
        grammar_.automata_[static_cast<std::size_t>(string.automaton)].bytes_to_end(0);
    grammar_.strings_.push_back(string);
    add(Grammar::Kind::kString, static_cast<std::int32_t>(grammar_.strings_.size()) - 1,
        2 + inside + string.min_length + (string.grounded ? Grammar::kGroundedValue : 0));
  }

  // --- Arrays and objects ---

  // The values of one literal node if that is all that `value` may be; integer ranges are written
  // out.
  bool make_literal(Value& value) {
    std::vector<std::string> texts;
    for (const Grammar::Node& node : value.nodes) {
      if (node.kind == Grammar::Kind::kLiterals) {
        const auto& more = grammar_.literals(node.index).texts;
        texts.insert(texts.end(), more.begin(), more.end());
      } else if (node.kind == Grammar::Kind::kNumber) {
        const auto more = grammar_.number(node.index).automaton.listed(kMostUniqueItems);
        if (!more) {
          return false;
        }
        texts.insert(texts.end(), more->begin(), more->end());
      } else {
        return false;
      }
    }
    grammar_.literals_.push_back(literals(std::move(texts)));
    value.nodes = {
        {Grammar::Kind::kLiterals, static_cast<std::int32_t>(grammar_.literals_.size()) - 1}};
    return true;
  }

  template <typename Add>
  bool add_array(const ArrayShape& shape, const std::string& path, Add add) {
    Grammar::Array array{.min_items = shape.min_items, .max_items = shape.max_items};
    const auto shorten = [&](std::size_t size) {
      const auto most = static_cast<std::int64_t>(size);
      array.max_items = array.max_items < 0 ? most : std::min(array.max_items, most);
    };
    bool cut = false;  // items that hold themselves too often cannot come
    for (const SchemaConjunction& conjunction : shape.prefix) {
      std::optional<Value> item = compile(conjunction, path + ".prefixItems");
      if (!item) {
        cut = true;
        break;
      }
      array.prefix.push_back(*std::move(item));
    }
    if (!cut && !shape.closed && array.max_items != 0) {
      array.items =
          compile(shape.items, shape.items.empty() ? path + ".items" : shape.items[0].path);
      cut = !array.items;
    }
    if (!array.items) {
      shorten(array.prefix.size());
    }
    if (shape.unique) {
      array.unique = make_unique(array, path);
    }
    if (array.max_items >= 0 && array.min_items > array.max_items) {
      if (cut) {
        return false;
      }
      throw Contradiction{format("minItems {} is above the {} items that there can be",
                                 array.min_items, array.max_items)};
    }
    std::int64_t tokens = 2;
    for (std::int64_t i = 0; i < array.min_items && plain(tokens) < kMostTokens; ++i) {
      tokens += item_value(array, i).tokens + (i > 0 ? 1 : 0);
    }
    if (plain(tokens) >= kMostTokens) {
      throw Contradiction{format("minItems {}: no answer can be that long", array.min_items)};
    }
    grammar_.arrays_.push_back(std::move(array));
    add(Grammar::Kind::kArray, static_cast<std::int32_t>(grammar_.arrays_.size()) - 1, tokens);
    return true;
  }

  bool make_unique(Grammar::Array& array, const std::string& path) {
    const bool one_kind = array.prefix.empty() && array.items;
    if (!one_kind || !make_literal(*array.items)) {
      if (array.max_items < 0 || array.max_items > 1) {
        note(path, "uniqueItems",
             "only items of an enum or a small range of integers can be kept apart");
      }
      return false;
    }
    const Grammar::Literals& all = grammar_.literals_.back();
    std::int32_t most = 0;  // the dearest: any others may be taken before
    for (const auto& tokens : all.tokens) {
      most = std::max(most, tokens.front());
    }
    array.items->tokens = most;
    const auto count = static_cast<std::int64_t>(all.texts.size());
    array.max_items = array.max_items < 0 ? count : std::min(array.max_items, count);
    return true;
  }

  static const Value& item_value(const Grammar::Array& array, std::int64_t index) {
    return index < std::ssize(array.prefix) ? array.prefix[static_cast<std::size_t>(index)]
                                            : *array.items;
  }

  template <typename Add>
  bool add_object(const ObjectShape& shape, const std::string& path, Add add) {
    const auto is_required = [&](const std::string& name) {
      return std::ranges::find(shape.required, name) != shape.required.end();
    };
    struct Key {
      std::string text;
      Value value;
      bool required = false;
    };
    std::vector<Key> keys;
    Grammar::Object object;
    for (const ObjectShape::Property& property : shape.properties) {
      const std::string where =
          property.value.empty() ? path + ".properties." + property.name : property.value[0].path;
      std::optional<Value> value = compile(property.value, where);
      object.key_hashes.push_back(hash_text(property.name));
      if (value) {
        keys.push_back({write_compact(JsonValue::string(property.name), options_.escapes) + ":",
                        *std::move(value), is_required(property.name)});
      } else if (is_required(property.name)) {
        return false;
      }
    }
    if (shape.open) {
      object.extra = compile(
          shape.extra, shape.extra.empty() ? path + ".additionalProperties" : shape.extra[0].path);
    }
    std::ranges::sort(object.key_hashes);
    std::ranges::sort(keys, {}, &Key::text);
    std::vector<std::string> texts;
    for (Key& key : keys) {
      texts.push_back(key.text);
      object.values.push_back(std::move(key.value));
      object.required.push_back(key.required);
    }
    object.keys = literals(std::move(texts));
    std::int64_t tokens = 2;
    bool first = true;
    for (std::size_t i = 0; i < object.values.size(); ++i) {
      if (object.required[i]) {
        tokens += object.keys.tokens[i].front() + object.values[i].tokens + (first ? 0 : 1);
        first = false;
      }
    }
    if (plain(tokens) >= kMostTokens) {
      throw Contradiction{"no answer can be that long"};
    }
    grammar_.objects_.push_back(std::move(object));
    add(Grammar::Kind::kObject, static_cast<std::int32_t>(grammar_.objects_.size()) - 1, tokens);
    return true;
  }

  void note(const std::string& path, std::string_view keyword, std::string reason) {
    const bool known = std::ranges::any_of(grammar_.unenforced_, [&](const Unenforced& one) {
      return one.path == path && one.keyword == keyword;
    });
    if (!known) {
      grammar_.unenforced_.push_back({path, std::string(keyword), std::move(reason)});
    }
  }

  Grammar& grammar_;
  const GrammarOptions& options_;
  std::deque<JsonValue> schemas_;
  SchemaReader* reader_ = nullptr;
  std::string tool_;
  bool tool_grounded_ = false;
  int recursion_left_ = 0;
  std::set<std::vector<const JsonValue*>> open_;  // being compiled
  std::map<std::pair<std::vector<const JsonValue*>, int>, std::optional<Value>> made_;
};

std::shared_ptr<const Grammar> Grammar::of_tools(std::string_view tools_json,
                                                 std::shared_ptr<const TokenTrie> trie,
                                                 const GrammarOptions& options) {
  std::shared_ptr<Grammar> grammar(new Grammar(std::move(trie)));
  GrammarCompiler(*grammar, options).compile_tools(tools_json);
  grammar->make_room();
  return grammar;
}

std::shared_ptr<const Grammar> Grammar::of_schema(const JsonValue& schema,
                                                  std::shared_ptr<const TokenTrie> trie,
                                                  const GrammarOptions& options) {
  std::shared_ptr<Grammar> grammar(new Grammar(std::move(trie)));
  GrammarCompiler(*grammar, options).compile_schema(schema);
  grammar->make_room();
  return grammar;
}

}  // namespace needle
