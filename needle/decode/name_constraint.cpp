#include "needle/decode/name_constraint.h"

#include <algorithm>
#include <utility>

#include "needle/calls/json_value.h"
#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/decode/byte_piece.h"

namespace needle {
namespace {

std::string token_text(const Tokenizer& tokenizer, TokenId id) {
  constexpr std::string_view kSpaceMark = "\u2581";
  switch (tokenizer.piece_type(id)) {
    case PieceType::kControl:
    case PieceType::kUnknown:
      return "";
    case PieceType::kByte: {
      std::string text;
      append_utf8(text, byte_of_piece(tokenizer, id).value_or(0));
      return text;
    }
    case PieceType::kNormal:
    case PieceType::kUserDefined:
    case PieceType::kUnused:
      break;
  }
  std::string text(tokenizer.piece(id));
  for (auto mark = text.find(kSpaceMark); mark != std::string::npos; mark = text.find(kSpaceMark)) {
    text.replace(mark, kSpaceMark.size(), " ");
  }
  return text;
}

// With JSON Schema parameters `type` names a type; a flat parameter called "type" is an object.
const JsonValue& declared_parameters(const JsonValue& parameters, DeclaredKeys keys) {
  if (keys == DeclaredKeys::kSchema) {
    const JsonValue* properties = parameters.find("properties");
    const JsonValue* type = parameters.find("type");
    if (properties != nullptr && properties->is_object() && type != nullptr && type->is_string()) {
      return *properties;
    }
  }
  return parameters;
}

}  // namespace

TokenTexts::TokenTexts(const Tokenizer& tokenizer) {
  const TokenId count = tokenizer.vocab_size();
  texts_.reserve(static_cast<std::size_t>(count));
  for (TokenId id = 0; id < count; ++id) {
    const std::string& text = texts_.emplace_back(token_text(tokenizer, id));
    if (text.empty()) {
      continue;
    }
    const auto quote = text.find('"');
    if (quote == std::string::npos) {
      plain_[text].push_back(id);
    } else {
      closing_[text.substr(0, quote)].push_back(id);
    }
  }
}

std::string_view TokenTexts::text(TokenId id) const {
  NEEDLE_CHECK(id >= 0 && id < size(), "token {} is outside the vocabulary of {}", id, size());
  return texts_[static_cast<std::size_t>(id)];
}

std::span<const TokenId> TokenTexts::equal_to(std::string_view text) const {
  const auto found = plain_.find(text);
  return found == plain_.end() ? std::span<const TokenId>() : found->second;
}

std::span<const TokenId> TokenTexts::closing_after(std::string_view head) const {
  const auto found = closing_.find(head);
  return found == closing_.end() ? std::span<const TokenId>() : found->second;
}

void CallTracker::feed(std::string_view text) {
  for (const char character : text) {
    feed_character(character);
  }
}

void CallTracker::feed_character(char character) {
  if (state_ == SpanState::kFree) {
    feed_free(character);
  } else if (character != '"') {
    span_ += character;
  } else {  // even an escaped quote ends a name or key
    if (state_ == SpanState::kName) {
      tool_ = span_;
    }
    span_.clear();
    state_ = SpanState::kFree;
  }
  text_ += character;
}

// `text_` does not hold the character yet.
void CallTracker::feed_free(char character) {
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (character == '\\') {
      escaped_ = true;
    } else if (character == '"') {
      in_string_ = false;
    }
    return;
  }
  switch (character) {
    case '{':
    case '[':
      ++depth_;
      if (character == '{' && text_.ends_with(R"("arguments":)")) {
        in_arguments_ = true;
        arguments_depth_ = depth_;
      }
      break;
    case '}':
    case ']':
      depth_ = std::max<std::int64_t>(0, depth_ - 1);
      if (character == '}' && depth_ < arguments_depth_) {
        in_arguments_ = false;
      }
      break;
    case '"':
      if (!in_arguments_ && text_.ends_with(R"("name":)")) {
        state_ = SpanState::kName;
      } else if (in_arguments_ && depth_ == arguments_depth_ &&
                 (text_.ends_with('{') || text_.ends_with(','))) {
        state_ = SpanState::kKey;
      } else {
        const auto last = text_.find_last_not_of(' ');
        in_string_ = last != std::string::npos && text_[last] == ':';
      }
      break;
    default:
      break;
  }
}

NameConstraint::NameConstraint(std::shared_ptr<const TokenTexts> texts, std::string_view tools_json,
                               DeclaredKeys keys)
    : texts_(std::move(texts)) {
  NEEDLE_CHECK(texts_ != nullptr, "a name constraint needs token texts");
  allowed_ = TokenSet(texts_->size());
  const JsonParseResult parsed = parse_json_value(tools_json);
  if (!parsed.value || !parsed.value->is_array()) {
    return;
  }
  for (const JsonValue& tool : parsed.value->items()) {
    const JsonValue* name = tool.find("name");
    if (name == nullptr || !name->is_string()) {
      continue;
    }
    tool_names_.push_back(name->as_string());
    std::vector<std::string>& tool_keys = keys_by_tool_[name->as_string()];
    tool_keys.clear();  // of two tools with one name the later counts
    const JsonValue* parameters = tool.find("parameters");
    if (parameters == nullptr || !parameters->is_object()) {
      continue;
    }
    for (const auto& [key, value] : declared_parameters(*parameters, keys).members()) {
      if (value.is_object()) {
        tool_keys.push_back(key);
      }
    }
  }
}

const std::vector<std::string>* NameConstraint::words() const {
  static const std::vector<std::string> kNone;
  switch (tracker_.state()) {
    case SpanState::kFree:
      return nullptr;
    case SpanState::kName:
      return &tool_names_;
    case SpanState::kKey:
      break;
  }
  const auto keys = keys_by_tool_.find(tracker_.tool());
  return keys == keys_by_tool_.end() ? &kNone : &keys->second;
}

template <typename Visit>
void NameConstraint::visit_fitting(const std::vector<std::string>& candidates, Visit visit) const {
  for (const std::string& word : candidates) {
    if (!word.starts_with(tracker_.span())) {
      continue;
    }
    const std::string_view rest = std::string_view(word).substr(tracker_.span().size());
    for (std::size_t length = 1; length <= rest.size(); ++length) {
      visit(texts_->equal_to(rest.substr(0, length)));
    }
    visit(texts_->closing_after(rest));
  }
}

const TokenSet* NameConstraint::allowed(std::int64_t /*tokens_left*/) {
  const std::vector<std::string>* const candidates = words();
  if (candidates == nullptr) {
    return nullptr;
  }
  bool any = false;
  allowed_.clear();
  visit_fitting(*candidates, [&](std::span<const TokenId> ids) {
    for (const TokenId id : ids) {
      allowed_.insert(id);
      any = true;
    }
  });
  masked_steps_ += any ? 1 : 0;
  return any ? &allowed_ : nullptr;
}

bool NameConstraint::fallback() const {
  const std::vector<std::string>* const candidates = words();
  bool any = false;
  if (candidates != nullptr) {
    visit_fitting(*candidates, [&](std::span<const TokenId> ids) { any = any || !ids.empty(); });
  }
  return candidates != nullptr && !any;
}

std::unique_ptr<Constraint> NameConstraint::clone() const {
  return std::make_unique<NameConstraint>(*this);
}

void NameConstraint::accept(TokenId token) { tracker_.feed(texts_->text(token)); }

}  // namespace needle
