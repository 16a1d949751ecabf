#include "needle/decode/grammar_source.h"

#include <string>

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
  return grammars_.find_or_make(key_of("tools", tools_json, options),
                                [&] { return Grammar::of_tools(tools_json, trie(), options); });
}

std::shared_ptr<const Grammar> GrammarSource::of_schema(std::string_view schema_json,
                                                        const GrammarOptions& options) {
  return grammars_.find_or_make(key_of("schema", schema_json, options), [&] {
    const JsonParseResult schema = parse_json_value(schema_json);
    if (!schema.value) {
      throw DataError(format("schema: not JSON: {}", schema.error));
    }
    return Grammar::of_schema(*schema.value, trie(), options);
  });
}

std::shared_ptr<const TokenTrie> GrammarSource::trie() {
  const std::lock_guard lock(mutex_);
  if (trie_ == nullptr) {
    trie_ = std::make_shared<const TokenTrie>(tokenizer_);
  }
  return trie_;
}

}  // namespace needle
