// The reference's name constraint (specification, section 8): inside a tool name only declared
// tools can be spelled, inside an argument key only parameters of the chosen tool; everything else
// is free. A baseline: a full grammar is another Constraint.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "needle/decode/constraint.h"
#include "needle/text/tokenizer.h"

namespace needle {

// What each id adds to the output in the eyes of the constraint: the piece with U+2581 as a space;
// a byte piece is the character of that code point (not a UTF-8 byte); control and unknown pieces
// are empty. Made once a tokenizer, immutable, safe from several threads.
class TokenTexts {
 public:
  explicit TokenTexts(const Tokenizer& tokenizer);

  TokenId size() const { return static_cast<TokenId>(texts_.size()); }
  std::string_view text(TokenId id) const;

  // Ids of the non-empty texts without a quote that equal `text`.
  std::span<const TokenId> equal_to(std::string_view text) const;
  // Ids of the texts whose part before their first quote equals `head`.
  std::span<const TokenId> closing_after(std::string_view head) const;

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>{}(text);
    }
  };
  using Ids = std::unordered_map<std::string, std::vector<TokenId>, Hash, std::equal_to<>>;

  std::vector<std::string> texts_;
  Ids plain_;    // by whole text
  Ids closing_;  // by the text before the first quote
};

enum class SpanState { kFree, kName, kKey };

// Follows an answer character by character and knows whether the next one lies in a tool name or an
// argument key.
class CallTracker {
 public:
  // UTF-8; characters may be split between calls, since only ASCII has a meaning here.
  void feed(std::string_view text);

  SpanState state() const { return state_; }
  const std::string& span() const { return span_; }  // of the name or key so far; empty when free
  const std::string& tool() const { return tool_; }  // the last complete tool name
  bool in_arguments() const { return in_arguments_; }
  std::int64_t depth() const { return depth_; }

 private:
  void feed_character(char character);
  void feed_free(char character);

  std::string text_;
  std::string span_;
  std::string tool_;
  SpanState state_ = SpanState::kFree;
  std::int64_t depth_ = 0;
  std::int64_t arguments_depth_ = 0;
  bool in_arguments_ = false;
  bool in_string_ = false;
  bool escaped_ = false;
};

enum class DeclaredKeys {
  kSchema,     // of JSON Schema parameters the keys of `properties`
  kReference,  // always the keys of `parameters` itself whose value is an object
};

// One generation. Not thread-safe.
class NameConstraint : public Constraint {
 public:
  // `tools_json` as the model sees it (names in snake_case). Text that is not a JSON array
  // constrains nothing.
  NameConstraint(std::shared_ptr<const TokenTexts> texts, std::string_view tools_json,
                 DeclaredKeys keys = DeclaredKeys::kSchema);

  // nullptr either because the position is free or because no token fits (fallback() tells which).
  // Knows no budget: an answer may be cut off, as in the reference.
  const TokenSet* allowed(std::int64_t tokens_left) override;
  void accept(TokenId token) override;
  std::unique_ptr<Constraint> clone() const override;

  bool fallback() const;
  const CallTracker& tracker() const { return tracker_; }
  // How often allowed() restricted something.
  std::int64_t masked_steps() const { return masked_steps_; }

 private:
  // Those that may fill the current span; nullptr: the position is free.
  const std::vector<std::string>* words() const;
  // visit(ids) for each list of ids that spell a beginning of one of `candidates`.
  template <typename Visit>
  void visit_fitting(const std::vector<std::string>& candidates, Visit visit) const;

  std::shared_ptr<const TokenTexts> texts_;
  std::vector<std::string> tool_names_;
  std::map<std::string, std::vector<std::string>, std::less<>> keys_by_tool_;
  CallTracker tracker_;
  TokenSet allowed_;
  std::int64_t masked_steps_ = 0;
};

}  // namespace needle
