#include "needle/decode/grammar_source.h"

#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

std::string key_of(std::string_view kind, std::string_view text, const GrammarOptions& options) {
  std::string key = format("{} {} {} {}", kind, static_cast<int>(options.escapes),
                           static_cast<int>(options.grounding), options.recursion_depth);
  for (const std::string& name : options.grounded) {
    key += '\n' + name;
  }
  return key + '\n' + std::string(text);
}

}  // namespace

std::shared_ptr<const Grammar> GrammarSource::of_tools(std::string_view tools_json,
                                                       const GrammarOptions& options) {
  return find_or_make(key_of("tools", tools_json, options),
                      [&](std::shared_ptr<const TokenTrie> trie) {
                        return Grammar::of_tools(tools_json, std::move(trie), options);
                      });
}

std::shared_ptr<const Grammar> GrammarSource::of_schema(std::string_view schema_json,
                                                        const GrammarOptions& options) {
  return find_or_make(key_of("schema", schema_json, options),
                      [&](std::shared_ptr<const TokenTrie> trie) {
                        const JsonParseResult schema = parse_json_value(schema_json);
                        if (!schema.value) {
                          throw DataError(format("schema: not JSON: {}", schema.error));
                        }
                        return Grammar::of_schema(*schema.value, std::move(trie), options);
                      });
}

// Grammars are made outside the lock: a slow one holds nobody up. Two threads may make the same.
std::shared_ptr<const Grammar> GrammarSource::find_or_make(std::string key, const Make& make) {
  std::shared_ptr<const TokenTrie> trie;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = by_key_.find(key); found != by_key_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      return entries_.front().second;
    }
    if (trie_ == nullptr) {
      trie_ = std::make_shared<const TokenTrie>(tokenizer_);
    }
    trie = trie_;
  }
  std::shared_ptr<const Grammar> grammar = make(std::move(trie));
  const std::lock_guard lock(mutex_);
  if (by_key_.contains(key)) {
    return grammar;
  }
  if (entries_.size() == kKept) {
    by_key_.erase(entries_.back().first);
    entries_.pop_back();
  }
  entries_.emplace_front(std::move(key), grammar);
  by_key_.emplace(entries_.front().first, entries_.begin());
  return grammar;
}

}  // namespace needle
