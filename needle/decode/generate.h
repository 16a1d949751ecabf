// The whole way from query and tools to calls (specification, section 8).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/tool_name.h"
#include "needle/core/lru_cache.h"
#include "needle/decode/confidence.h"
#include "needle/decode/engine.h"
#include "needle/decode/grammar_options.h"
#include "needle/decode/token_loop.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

class GrammarSource;  // needle/decode/grammar_source.h

// kNames: the reference's tool-name and argument-key constraint. kGrammar: whole answers, valid by
// the tools' schemas and closed within max_gen_len.
enum class Constrain { kNone, kNames, kGrammar };
inline constexpr EnumNames<Constrain, 3> kConstrainNames{
    {{{Constrain::kGrammar, "grammar"}, {Constrain::kNames, "names"}, {Constrain::kNone, "none"}}}};

struct CallRequest {
  std::string query;
  std::string tools_json;          // any style that parse_tools reads; else it is used as it is
  std::int64_t max_gen_len = 512;  // also bounded by the prompt config's max_dec_len
  Constrain constrain = Constrain::kGrammar;
  // The rest of this block needs kGrammar. `calls.tool` and `grounded` ("tool.parameter" or "tool")
  // have the tools' own names.
  CallLimits calls;
  Grounding grounding = Grounding::kOff;
  std::vector<std::string> grounded;
  std::string response_schema;  // JSON Schema: the answer is one such value instead of calls
  bool strict = false;          // a keyword that can't be enforced is an error
  // kConfidence gives `confidence` and `steps` at little cost; kTrace asks the model for all logits
  // of every token, forced ones too.
  StepDetail detail = StepDetail::kNone;
  std::int64_t alternatives = 3;  // other tokens kept of each step, with a detail
  std::int64_t n_best = 0;        // most probable answers to look for besides `text`
  bool normalize_names = true;    // false: the tools as written, the text as generated
  // Streaming: new text, whole characters only, names as generated. All pieces together are
  // CallResult::raw_text.
  std::function<bool(std::string_view text)> on_text;  // false cancels
  // Asked while the prompt is read (between layers) and at every token, those of n_best too: true
  // ends with StopReason::kCancelled.
  std::function<bool()> cancelled;
};

struct RankedAnswer {
  std::string text;        // with the tools' own names
  double probability = 0;  // among what the constraint allowed, spellings of one text together
};

struct CallResult {
  std::string text;      // with the tools' own names; always valid UTF-8
  std::string raw_text;  // as generated, <tool_call> stripped
  std::vector<TokenId> prompt_ids;
  std::vector<TokenId> ids;
  StopReason stop = StopReason::kEos;
  std::int64_t cut_query_tokens = 0;
  std::int64_t cut_tools_tokens = 0;
  std::int64_t forced_tokens = 0;  // of ids and eos: came without asking the model
  std::int64_t chosen_tokens = 0;
  std::vector<Unenforced> unenforced;          // kGrammar: what the answer need not obey
  std::vector<TokenStep> steps;                // with a detail: one a token, eos included
  std::optional<AnswerConfidence> confidence;  // with a detail
  std::vector<RankedAnswer> n_best;            // best first
  double prefill_seconds = 0;
  double decode_seconds = 0;  // of the answer (in a batch, of all), without n_best
};

// Everything that serving needs besides an engine. Safe from several threads.
class FunctionCaller {
 public:
  // Keeps references: engine and tokenizer must outlive it. NameStyle::kReference does everything
  // as the reference: colliding names, keys of JSON Schema tools under the constraint, special
  // symbols typed by a user. `calibration`: fills the `calibrated` members of confidences.
  FunctionCaller(const Engine& engine, const Tokenizer& tokenizer, PromptConfig prompt,
                 NameStyle name_style = NameStyle::kUnique,
                 std::optional<Calibration> calibration = {});

  // Throws Error or DataError where no grammar can be made of the tools or the schema (naming the
  // place), where `calls` ask for what there is not, and where max_gen_len is too small for any
  // answer.
  CallResult call(const CallRequest& request) const;
  // Compiles the request's grammar, so that call() finds it; throws as call() would before it asks
  // the model.
  void prepare(const CallRequest& request) const;
  // Tokens of the request's prompt beyond max_enc_len, which call() would cut.
  std::int64_t prompt_overflow(const CallRequest& request) const;
  // Several at once: prompts are read one after the other, then all answers go on together, the
  // engine's weights read once a pass for all. Results in the order of the requests, each as from
  // call(); their decode_seconds are of all answers. A request that ends early, by itself or by its
  // callbacks, leaves the others alone. Throws what call() would of any, before a prompt is read;
  // what a callback throws ends all.
  std::vector<CallResult> call_batch(std::span<const CallRequest> requests) const;

 private:
  struct PreparedTools;
  struct Answer;
  std::shared_ptr<const PreparedTools> prepared_tools(const CallRequest& request) const;
  EncoderPrompt prompt_of(const CallRequest& request, const PreparedTools& tools) const;
  std::unique_ptr<Constraint> constraint_of(const CallRequest& request,
                                            const NormalizedTools& tools,
                                            std::vector<Unenforced>& unenforced) const;
  std::int64_t budget_of(const CallRequest& request) const;
  SpecialText special_text() const;

  const Engine& engine_;
  const Tokenizer& tokenizer_;
  PromptConfig prompt_;
  NameStyle name_style_;
  std::optional<Calibration> calibration_;
  struct LazyTexts;  // of all tokens: made when a name constraint first needs them
  std::shared_ptr<LazyTexts> token_texts_;
  std::shared_ptr<GrammarSource> grammars_;
  std::shared_ptr<LruCache<PreparedTools>> tools_;  // of requests before, by their text
};

}  // namespace needle
