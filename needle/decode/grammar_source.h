// Grammars by their tools: compiled once, kept for the next request with the same ones.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "needle/core/lru_cache.h"
#include "needle/decode/grammar.h"
#include "needle/text/tokenizer.h"

namespace needle {

// Of one tokenizer, whose trie is made when the first grammar is. Safe from several threads.
class GrammarSource {
 public:
  static constexpr std::size_t kKept = 64;  // grammars; the least recently used goes first

  explicit GrammarSource(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  const Tokenizer& tokenizer() const { return tokenizer_; }

  // As Grammar::of_tools and of_schema. Throws Error or DataError; an error is not kept.
  std::shared_ptr<const Grammar> of_tools(std::string_view tools_json,
                                          const GrammarOptions& options);
  std::shared_ptr<const Grammar> of_schema(std::string_view schema_json,
                                           const GrammarOptions& options);

 private:
  std::shared_ptr<const TokenTrie> trie();

  Tokenizer tokenizer_;
  std::mutex mutex_;  // of the trie
  std::shared_ptr<const TokenTrie> trie_;
  LruCache<Grammar> grammars_{kKept};
};

}  // namespace needle
