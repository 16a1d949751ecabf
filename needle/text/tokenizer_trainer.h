// Trains the SentencePiece tokenizer with the reference's settings (specification, section 3): BPE
// with byte fallback, identity normalisation, ids pad 0, eos 1, bos 2, unk 3, <tool_call> 4,
// <tools> 5, everything else at SentencePiece's defaults.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/text/tokenizer.h"

namespace needle {

// The JSON between the words of tools and answers, as symbols of their own: each becomes one token
// wherever it occurs. The entry "default" in TokenizerTrainerConfig::json_symbols stands for this
// list.
std::span<const std::string_view> default_json_symbols();

struct TokenizerTrainerConfig {
  std::int64_t vocab_size = 8192;
  std::vector<std::string> json_symbols;  // empty: as the reference
  double character_coverage = 0.9995;
  std::int64_t max_line_bytes = 4192;
  std::int64_t num_threads = 0;
  bool hard_vocab_limit = true;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("vocab_size", self.vocab_size,
          "Pieces, with the 6 special ones, 256 bytes and the JSON symbols");
    visit("json_symbols", self.json_symbols,
          "Pieces of JSON that are one token each; \"default\" stands for the built-in list, none "
          "is the reference");
    visit("character_coverage", self.character_coverage,
          "Share of the text's characters that get a piece; the rest "
          "is written as bytes");
    visit("max_line_bytes", self.max_line_bytes, "Longer lines are left out, and counted");
    visit("num_threads", self.num_threads,
          "Threads for training, 0 for one per core; the result does not depend on it");
    visit("hard_vocab_limit", self.hard_vocab_limit,
          "false: a text too short for vocab_size gives fewer pieces instead of an error");
  }

  // Throws ConfigError naming `where` and the field.
  void validate(std::string_view where) const;
};

struct TrainedTokenizer {
  Tokenizer tokenizer;
  std::int64_t lines = 0;       // used, edges stripped, empty ones left out
  std::int64_t long_lines = 0;  // left out: over max_line_bytes
};

// Writes the next text into `text` and returns true, or returns false at the end. A text may hold
// several lines.
using TextSource = std::function<bool(std::string& text)>;

// Same text and settings give the same bytes on any machine. Holds the text in memory; writes no
// file. What `next_text` throws is passed on. Throws DataError if there is no text, ConfigError if
// the vocabulary is too large or too small for it, naming a size that works. SentencePiece's log
// level is one per process: not to be called from several threads at once.
TrainedTokenizer train_tokenizer(const TextSource& next_text,
                                 const TokenizerTrainerConfig& config = {});
TrainedTokenizer train_tokenizer(std::span<const std::string> texts,
                                 const TokenizerTrainerConfig& config = {});

}  // namespace needle
