#include "needle/synth/generator.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <utility>

#include "needle/core/error.h"
#include "needle/synth/words.h"

namespace needle {
namespace {

bool chance(Random& random, double probability) { return random.uniform() < probability; }

template <typename Container>
const auto& pick(const Container& items, Random& random) {
  return items[random.below(static_cast<std::uint32_t>(std::size(items)))];
}

bool starts_with_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(),
                     [text](std::string_view word) { return text.starts_with(word); });
}

// "set_alarm", "SetAlarm" and "set-alarm" all become "set alarm".
std::string words_of(std::string_view name) {
  std::string words;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    const bool upper = c >= 'A' && c <= 'Z';
    if (c == '_' || c == '-' || c == '.') {
      words += ' ';
    } else if (upper && i > 0 && name[i - 1] >= 'a' && name[i - 1] <= 'z') {
      words += ' ';
      words += static_cast<char>(c - 'A' + 'a');
    } else {
      words += upper ? static_cast<char>(c - 'A' + 'a') : c;
    }
  }
  return words;
}

// The first clause of a description as an order: "Set an alarm for a given time." -> "set an
// alarm".
std::string order_of(const Tool& tool, Random& random) {
  std::string order = words_of(tool.name);
  if (!tool.description.empty() && chance(random, 0.6)) {
    std::string clause = tool.description.substr(0, tool.description.find_first_of(".,;:("));
    for (const std::string_view stop :
         {" for ", " with ", " at ", " in ", " on ", " to ", " by ", " from ", " of "}) {
      const std::size_t position = clause.find(stop, 4);
      if (position != std::string::npos) {
        clause.resize(position);
      }
    }
    if (!clause.empty() && static_cast<unsigned char>(clause[0]) < 128) {
      clause[0] = static_cast<char>(std::tolower(clause[0]));
      order = clause;
    }
  }
  return order;
}

// `order`: a request that a polite opening may stand before; small talk is left as it is.
std::string decorate(std::string text, bool order, Random& random) {
  static constexpr std::array<std::string_view, 8> kPrefixes{
      "please ",     "can you ",   "could you ",   "i want you to ",
      "hey needle ", "i need to ", "i'd like to ", "would you "};
  static constexpr std::array<std::string_view, 4> kSuffixes{" please", " thanks", " right now",
                                                             " for me"};
  const bool question =
      starts_with_any(text, {"what", "how", "who", "when", "where", "which", "is ", "are ", "will ",
                             "do ", "does ", "i ", "i'm", "wie", "let "});
  if (order && !question && chance(random, 0.4)) {
    text.insert(0, pick(kPrefixes, random));
  }
  if (order && !question && chance(random, 0.15)) {
    text += pick(kSuffixes, random);
  }
  if (!text.empty() && chance(random, 0.3)) {
    text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  }
  if (chance(random, 0.15)) {
    text += question ? "?" : ".";
  }
  return text;
}

// What is said for a value: enum texts lose their underscores, as people do not speak them.
std::string spoken_text(const SpokenValue& value, ValueKind kind) {
  std::string spoken = value.spoken;
  if (kind == ValueKind::kEnum) {
    std::replace(spoken.begin(), spoken.end(), '_', ' ');
  }
  return spoken;
}

}  // namespace

void SynthConfig::validate() const {
  const auto share = [](std::string_view name, double value) {
    if (!(value >= 0.0 && value <= 1.0)) {
      throw ConfigError(format("{} = {}: expected a share between 0 and 1", name, value));
    }
  };
  share("no_call_share", no_call_share);
  share("multi_call_share", multi_call_share);
  share("optional_share", optional_share);
  if (no_call_share + multi_call_share > 1.0) {
    throw ConfigError(
        format("no_call_share + multi_call_share = {}: together they may be at most 1",
               no_call_share + multi_call_share));
  }
  if (min_tools < 1 || max_tools < min_tools) {
    throw ConfigError(format("min_tools = {}, max_tools = {}: expected 1 <= min_tools <= max_tools",
                             min_tools, max_tools));
  }
}

std::string SynthRow::to_jsonl() const {
  JsonValue::Array declared;
  for (const Tool& tool : tools) {
    declared.push_back(tool.declared);
  }
  JsonValue::Array calls;
  for (const Call& call : answers) {
    calls.push_back(call.to_json());
  }
  return write_compact(
      JsonValue::object({{"query", JsonValue::string(query)},
                         {"tools", JsonValue::string(write_compact(JsonValue::array(declared),
                                                                   JsonEscapes::kUtf8))},
                         {"answers", JsonValue::string(write_compact(JsonValue::array(calls),
                                                                     JsonEscapes::kUtf8))}}),
      JsonEscapes::kUtf8);
}

RowGenerator::RowGenerator(std::vector<Tool> tools, const SynthConfig& config) : config_(config) {
  config_.validate();
  if (tools.empty()) {
    throw DataError("the tool list is empty: give at least one tool to make rows for");
  }
  std::set<std::string> names;
  for (Tool& tool : tools) {
    if (!names.insert(tool.name).second) {
      throw DataError(format("tool \"{}\" is declared twice: rename or remove one", tool.name));
    }
    Source source{std::move(tool), {}};
    if (const JsonValue* templates = source.tool.declared.find(kToolTemplatesKey);
        templates != nullptr) {
      if (!templates->is_array()) {
        throw DataError(
            format("tool \"{}\": \"templates\" must be an array of strings", source.tool.name));
      }
      for (const JsonValue& item : templates->items()) {
        if (!item.is_string()) {
          throw DataError(
              format("tool \"{}\": \"templates\" must be an array of strings", source.tool.name));
        }
        Template parsed{item.as_string(), {}};
        for (std::size_t open = parsed.text.find('{'); open != std::string::npos;
             open = parsed.text.find('{', open + 1)) {
          const std::size_t close = parsed.text.find('}', open);
          const std::string name =
              parsed.text.substr(open + 1, close == std::string::npos ? close : close - open - 1);
          const auto& parameters = source.tool.parameters;
          const auto found = std::find_if(
              parameters.begin(), parameters.end(),
              [&name](const ToolParameter& parameter) { return parameter.name == name; });
          if (close == std::string::npos || found == parameters.end()) {
            throw DataError(
                format("tool \"{}\", template \"{}\": \"{}\" is not one of its parameters",
                       source.tool.name, parsed.text, name));
          }
          parsed.parameters.push_back(static_cast<std::size_t>(found - parameters.begin()));
        }
        source.templates.push_back(std::move(parsed));
      }
      auto& members = source.tool.declared.members();
      std::erase_if(members, [](const auto& member) { return member.first == kToolTemplatesKey; });
    }
    sources_.push_back(std::move(source));
  }
}

RowGenerator::Request RowGenerator::request(const Source& source, Random& random) const {
  if (source.templates.empty()) {
    return request_from_schema(source, random);
  }
  return request_from_template(source, pick(source.templates, random), random);
}

RowGenerator::Request RowGenerator::request_from_template(const Source& source,
                                                          const Template& chosen,
                                                          Random& random) const {
  Request result{chosen.text, {.name = source.tool.name}};
  for (std::size_t i = 0; i < source.tool.parameters.size(); ++i) {
    const ToolParameter& parameter = source.tool.parameters[i];
    const bool in_template =
        std::find(chosen.parameters.begin(), chosen.parameters.end(), i) != chosen.parameters.end();
    if (!in_template && !parameter.required) {
      continue;
    }
    const ValueKind kind = guess_kind(parameter);
    const SpokenValue value = draw_value(kind, parameter, config_.values, random);
    const std::string spoken = spoken_text(value, kind);
    if (in_template) {
      const std::string placeholder = "{" + parameter.name + "}";
      for (std::size_t at = result.text.find(placeholder); at != std::string::npos;
           at = result.text.find(placeholder, at + spoken.size())) {
        result.text.replace(at, placeholder.size(), spoken);
      }
    } else {
      result.text += " " + words_of(parameter.name) + " " + spoken;
    }
    result.call.arguments.set(parameter.name, value.value);
  }
  return result;
}

RowGenerator::Request RowGenerator::request_from_schema(const Source& source,
                                                        Random& random) const {
  Request result{order_of(source.tool, random), {.name = source.tool.name}};
  for (const ToolParameter& parameter : source.tool.parameters) {
    if (!parameter.required && !chance(random, config_.optional_share)) {
      continue;
    }
    const ValueKind kind = guess_kind(parameter);
    if (kind == ValueKind::kObject && !parameter.required) {
      continue;  // nothing that a person would say
    }
    const SpokenValue value = draw_value(kind, parameter, config_.values, random);
    const std::string_view word = preposition(kind, random);
    const bool plain = !word.empty() && kind != ValueKind::kEnum && kind != ValueKind::kInteger &&
                       kind != ValueKind::kNumber && chance(random, 0.7);
    if (kind == ValueKind::kObject) {
      // A required object: present and empty; its members have no words.
    } else if (plain) {
      result.text += " " + std::string(word) + " " + value.spoken;
    } else {
      result.text += (chance(random, 0.5) ? " with " : " ") + words_of(parameter.name) + " " +
                     spoken_text(value, kind);
    }
    result.call.arguments.set(parameter.name, value.value);
  }
  return result;
}

SynthRow RowGenerator::row(std::uint64_t index) const {
  Random random(derive_seed(config_.seed, "synth.row", index));
  const double kind = random.uniform();
  const bool no_call = kind < config_.no_call_share;
  const bool multi = !no_call && kind < config_.no_call_share + config_.multi_call_share;

  std::vector<std::size_t> order(sources_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  random.shuffle(std::span(order));
  const auto spread = static_cast<std::uint32_t>(config_.max_tools - config_.min_tools + 1);
  const std::size_t wanted = static_cast<std::size_t>(config_.min_tools) + random.below(spread);
  const std::size_t on_offer = std::min(wanted, sources_.size());

  SynthRow row;
  if (no_call) {
    const bool absent_tool = on_offer < order.size() && chance(random, 0.5);
    row.query = absent_tool
                    ? decorate(request(sources_[order[on_offer]], random).text, true, random)
                    : decorate(std::string(pick(words::kSmallTalk, random)), false, random);
  } else {
    static constexpr std::array<std::string_view, 5> kJoints{" and ", " and then ", ", then ",
                                                             " and also ", ", and "};
    const std::size_t calls = multi ? (chance(random, 0.85) ? 2 : 3) : 1;
    std::string text;
    for (std::size_t i = 0; i < calls; ++i) {
      Request one =
          request(sources_[order[random.below(static_cast<std::uint32_t>(on_offer))]], random);
      text += (i == 0 ? "" : std::string(pick(kJoints, random))) + one.text;
      row.answers.push_back(std::move(one.call));
    }
    row.query = decorate(std::move(text), true, random);
  }
  std::vector<std::size_t> offered(order.begin(),
                                   order.begin() + static_cast<std::ptrdiff_t>(on_offer));
  random.shuffle(std::span(offered));
  for (const std::size_t source : offered) {
    row.tools.push_back(sources_[source].tool);
  }
  return row;
}

std::string SynthTextRow::to_jsonl() const {
  return write_compact(JsonValue::object({{"query", JsonValue::string(query)},
                                          {"query_seed_text", JsonValue::string(seed_text)},
                                          {"synthetic_answer", JsonValue::string(answer)}}),
                       JsonEscapes::kUtf8);
}

SynthTextRow synth_text_row(const SynthConfig& config, std::uint64_t index) {
  struct Slot {
    std::string_view name;
    ValueKind kind;
  };
  static constexpr std::array<Slot, 14> kSlots{{{"time", ValueKind::kTime},
                                                {"date", ValueKind::kDate},
                                                {"duration", ValueKind::kDuration},
                                                {"city", ValueKind::kCity},
                                                {"person", ValueKind::kPerson},
                                                {"room", ValueKind::kRoom},
                                                {"color", ValueKind::kColor},
                                                {"device", ValueKind::kDevice},
                                                {"title", ValueKind::kTitle},
                                                {"message", ValueKind::kMessage},
                                                {"food", ValueKind::kFood},
                                                {"product", ValueKind::kProduct},
                                                {"language", ValueKind::kLanguage},
                                                {"phone", ValueKind::kPhone}}};
  static constexpr std::array<std::string_view, 8> kOrders{
      "book", "play", "send it", "order", "find", "set it up", "remind me", "show"};
  Random random(derive_seed(config.seed, "synth.text", index));
  std::vector<std::size_t> slots(kSlots.size());
  std::iota(slots.begin(), slots.end(), std::size_t{0});
  random.shuffle(std::span(slots));
  const std::size_t count = 1 + random.below(4);
  const ToolParameter untyped;

  std::string sentence(pick(kOrders, random));
  std::string pairs;
  std::vector<std::string> values;
  for (std::size_t i = 0; i < count; ++i) {
    const Slot& slot = kSlots[slots[i]];
    values.push_back(draw_value(slot.kind, untyped, config.values, random).spoken);
    const std::string_view word = preposition(slot.kind, random);
    sentence +=
        " " + (word.empty() ? std::string(slot.name) : std::string(word)) + " " + values.back();
    pairs += (i == 0 ? "" : ", ") + std::string(slot.name) + ": " + values.back();
  }
  const std::size_t asked = random.below(static_cast<std::uint32_t>(count));
  const std::string_view asked_name = kSlots[slots[asked]].name;
  switch (random.below(4)) {
    case 0:
      return {"repeat", sentence, sentence};
    case 1:
      return {"list all", sentence, pairs};
    case 2:
      return {format("which {}", asked_name), pairs, values[asked]};
    default:
      return {format("which {}", asked_name), sentence, values[asked]};
  }
}

}  // namespace needle
