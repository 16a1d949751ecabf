#include "needle/text/tokenizer_trainer.h"

#include <algorithm>
#include <array>
#include <exception>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include <sentencepiece_trainer.h>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/text/model_proto.h"

namespace needle {
namespace {

constexpr std::string_view kDefaultList = "default";
constexpr std::int64_t kByteAndSpecialPieces = 256 + 6;

std::string_view strip(std::string_view line) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const std::size_t begin = line.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) {
    return {};
  }
  return line.substr(begin, line.find_last_not_of(kSpace) - begin + 1);
}

// The texts' lines for SentencePiece. Exceptions must not cross its threads and status codes: one
// is kept for later.
class LineIterator : public sentencepiece::SentenceIterator {
 public:
  LineIterator(const TextSource& next_text, std::size_t max_line_bytes)
      : next_text_(next_text), max_line_bytes_(max_line_bytes) {
    advance();
  }

  bool done() const override { return done_; }
  void Next() override { advance(); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  std::int64_t lines() const { return lines_; }
  std::int64_t long_lines() const { return long_lines_; }
  void rethrow() const {
    if (exception_) {
      std::rethrow_exception(exception_);
    }
  }

 private:
  void advance() {
    try {
      while (next_line()) {
        if (line_.size() <= max_line_bytes_) {
          ++lines_;
          return;
        }
        ++long_lines_;
      }
    } catch (...) {
      exception_ = std::current_exception();
    }
    done_ = true;
  }

  // The next line that is not empty.
  bool next_line() {
    while (true) {
      while (at_ < text_.size()) {
        const std::size_t end = std::min(text_.find('\n', at_), text_.size());
        const std::string_view line = strip(std::string_view(text_).substr(at_, end - at_));
        at_ = end + 1;
        if (!line.empty()) {
          line_ = replace_invalid_utf8(line);
          return true;
        }
      }
      at_ = 0;
      text_.clear();
      if (!next_text_(text_)) {
        return false;
      }
    }
  }

  const TextSource& next_text_;
  std::size_t max_line_bytes_;
  std::string text_;
  std::size_t at_ = 0;
  std::string line_;
  bool done_ = false;
  std::int64_t lines_ = 0;
  std::int64_t long_lines_ = 0;
  std::exception_ptr exception_;
};

// <tool_call>, <tools> and the JSON symbols, "default" spelled out.
std::vector<std::string> symbols_of(const TokenizerTrainerConfig& config) {
  std::vector<std::string> symbols = {std::string(kToolCallPiece), std::string(kToolsPiece)};
  for (const std::string& symbol : config.json_symbols) {
    if (symbol == kDefaultList) {
      const auto defaults = default_json_symbols();
      symbols.insert(symbols.end(), defaults.begin(), defaults.end());
    } else {
      symbols.push_back(symbol);
    }
  }
  return symbols;
}

// SentencePiece takes lists as comma-separated values: each in quotes, inner quotes doubled.
std::string comma_separated(const std::vector<std::string>& values) {
  std::string list;
  for (const std::string& value : values) {
    list += list.empty() ? "\"" : ",\"";
    for (const char c : value) {
      list += c == '"' ? "\"\"" : std::string(1, c);
    }
    list += '"';
  }
  return list;
}

std::unordered_map<std::string, std::string> settings_of(const TokenizerTrainerConfig& config) {
  const auto threads = config.num_threads > 0
                           ? config.num_threads
                           : std::int64_t{std::max(1U, std::thread::hardware_concurrency())};
  return {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(config.vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"pad_id", std::to_string(kPadId)},
      {"eos_id", std::to_string(kEosId)},
      {"bos_id", std::to_string(kBosId)},
      {"unk_id", std::to_string(kUnkId)},
      {"user_defined_symbols", comma_separated(symbols_of(config))},
      {"character_coverage", format("{}", config.character_coverage)},
      {"max_sentence_length", std::to_string(config.max_line_bytes)},
      {"num_threads", std::to_string(std::min<std::int64_t>(threads, 128))},
      {"hard_vocab_limit", config.hard_vocab_limit ? "true" : "false"},
      {"minloglevel", "3"},  // fatal errors alone: libraries print nothing
  };
}

// The integer that follows `words` in a message of SentencePiece, or -1.
std::int64_t number_after(std::string_view message, std::string_view words) {
  const std::size_t at = message.find(words);
  if (at == std::string_view::npos) {
    return -1;
  }
  std::int64_t number = -1;
  for (const char c : message.substr(at + words.size(), 12)) {
    if (c < '0' || c > '9') {
      break;
    }
    number = std::max<std::int64_t>(number, 0) * 10 + (c - '0');
  }
  return number;
}

[[noreturn]] void report_failure(std::string_view message, const TokenizerTrainerConfig& config) {
  if (const auto most = number_after(message, "Please set it to a value <= "); most > 0) {
    throw ConfigError(format(
        "tokenizer: vocab_size = {} is more than this text can fill; set it to {} or less, or "
        "give more text",
        config.vocab_size, most));
  }
  if (const std::size_t versus = message.find(" vs ");
      message.find("smaller than required_chars") != std::string_view::npos &&
      versus != std::string_view::npos) {
    throw ConfigError(format(
        "tokenizer: vocab_size = {} leaves no room for the text's characters: {} pieces are needed "
        "at least; raise vocab_size or lower character_coverage",
        config.vocab_size, number_after(message, " vs ")));
  }
  throw ConfigError(
      format("tokenizer: SentencePiece cannot train with these settings: {}", message));
}

}  // namespace

// Chosen by counting what stands between the words of compact tools and answers (snips, assistant,
// services, many_tools and home rows). Mean tokens a row on their test files, 8192 pieces: flat
// tools 297 without symbols and trained on the text as stored, 164 with these symbols, 161 with
// these trained on compact JSON; the same tools as JSON Schema 330, 171, 168;
// answers 17.8, 14.8, 14.4.
std::span<const std::string_view> default_json_symbols() {
  static constexpr std::array<std::string_view, 36> kSymbols = {
      // The parameters of a tool.
      R"(":{"type":"string","description":")",
      R"(":{"type":"integer","description":")",
      R"(":{"type":"number","description":")",
      R"(":{"type":"boolean","description":")",
      R"(":{"type":"array","description":")",
      R"(","required":false})",
      R"(","required":true})",
      R"(","required":false},")",
      R"(","required":true},")",
      R"(","enum":[")",
      // Between the keys of a tool, in any order: training shuffles them.
      R"(","parameters":{")",
      R"({"parameters":{")",
      R"(","parameters":{})",
      R"({"parameters":{})",
      R"(","description":")",
      R"(","name":")",
      // At the start of a text: U+2581 is its dummy prefix.
      "\xE2\x96\x81[{\"name\":\"",
      "\xE2\x96\x81[{\"description\":\"",
      R"("},{"name":")",
      R"("},{"description":")",
      R"(},"name":")",
      R"(},"description":")",
      // JSON Schema parameters.
      R"(","parameters":{"type":"object","properties":{")",
      R"({"parameters":{"type":"object","properties":{")",
      R"(","parameters":{"type":"object","properties":{},"required":[]})",
      R"({"parameters":{"type":"object","properties":{},"required":[]})",
      R"("}},"required":[")",
      R"("}},"required":[]})",
      R"("},")",
      // Calls. The quotes go with the structure, so that values keep tokens of their own.
      R"(","arguments":{")",
      R"("}},{"name":")",
      R"("}}])",
      R"(":")",
      R"(",")",
      R"(":[")",
      R"("]})",
  };
  return kSymbols;
}

void TokenizerTrainerConfig::validate(std::string_view where) const {
  const std::vector<std::string> symbols = symbols_of(*this);
  const auto least = kByteAndSpecialPieces + static_cast<std::int64_t>(symbols.size()) - 2;
  if (vocab_size <= least || vocab_size > 1 << 20) {
    throw ConfigError(
        format("{}: vocab_size = {} must be above {} (256 bytes, 6 special pieces, {} symbols) and "
               "at most "
               "{}",
               where, vocab_size, least, symbols.size() - 2, 1 << 20));
  }
  if (!(character_coverage >= 0.98 && character_coverage <= 1.0)) {  // SentencePiece's own limits
    throw ConfigError(
        format("{}: character_coverage = {} is outside 0.98 to 1", where, character_coverage));
  }
  if (max_line_bytes < 1 || max_line_bytes > 1 << 24) {
    throw ConfigError(
        format("{}: max_line_bytes = {} is outside 1 to {}", where, max_line_bytes, 1 << 24));
  }
  if (num_threads < 0) {
    throw ConfigError(
        format("{}: num_threads = {} must be 0 (one per core) or more", where, num_threads));
  }
  std::set<std::string_view> seen = {"<pad>", "</s>", "<s>", "<unk>"};
  for (const std::string& symbol : symbols) {
    const bool has_space =
        symbol.find_first_of(std::string_view(" \t\r\n\v\f\0", 7)) != std::string::npos;
    if (symbol.empty() || has_space || !is_valid_utf8(symbol)) {
      throw ConfigError(format(
          "{}: json_symbols: '{}' must be text without spaces: spaces are rewritten before symbols "
          "are looked for",
          where, symbol));
    }
    const bool is_byte_piece =
        symbol.size() == 6 && symbol.starts_with("<0x") && symbol.ends_with(">");
    if (is_byte_piece || !seen.insert(symbol).second) {
      throw ConfigError(
          format("{}: json_symbols: '{}' is listed twice or is a piece that every tokenizer has",
                 where, symbol));
    }
  }
}

TrainedTokenizer train_tokenizer(const TextSource& next_text,
                                 const TokenizerTrainerConfig& config) {
  config.validate("tokenizer");
  LineIterator lines(next_text, static_cast<std::size_t>(config.max_line_bytes));
  if (lines.done()) {
    lines.rethrow();
    throw DataError(format("tokenizer: no text to train on ({} lines over {} bytes were left out)",
                           lines.long_lines(), config.max_line_bytes));
  }
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(settings_of(config), &lines, &model);
  lines.rethrow();
  if (!status.ok()) {
    report_failure(status.message(), config);
  }
  return {.tokenizer = Tokenizer::from_bytes(without_thread_count(model), "trained tokenizer"),
          .lines = lines.lines(),
          .long_lines = lines.long_lines()};
}

TrainedTokenizer train_tokenizer(std::span<const std::string> texts,
                                 const TokenizerTrainerConfig& config) {
  std::size_t next = 0;
  return train_tokenizer(
      [&](std::string& text) {
        if (next == texts.size()) {
          return false;
        }
        text = texts[next++];
        return true;
      },
      config);
}

}  // namespace needle
