#include "needle/decode/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

#include "needle/calls/tool.h"
#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/decode/grammar_constraint.h"
#include "needle/decode/grammar_source.h"
#include "needle/decode/n_best.h"
#include "needle/decode/name_constraint.h"

namespace needle {
namespace {

// Tools that are kept, and their texts' bytes together.
constexpr std::size_t kKeptTools = 64;
constexpr std::size_t kKeptToolBytes = 2 << 20;

std::string without_tool_call(std::string text) {
  if (text.starts_with(kToolCallPiece)) {
    text.erase(0, kToolCallPiece.size());
  }
  return text;
}

// Turns tokens into text that never has to be taken back: only whole characters, without the
// leading <tool_call>. Allocates nothing while answers are of usual length.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const std::function<bool(std::string_view)>& on_text,
             std::int64_t most_tokens)
      : decoder_(tokenizer, kBytesOfToken * static_cast<std::size_t>(most_tokens)),
        on_text_(on_text) {}

  bool add(TokenId token) {
    decoder_.add(token);
    const std::string_view text = decoder_.text();
    if (kToolCallPiece.starts_with(text) && text != kToolCallPiece) {
      return true;  // may become the marker
    }
    return emit();
  }

  void finish() {
    decoder_.finish();
    emit();
  }

 private:
  static constexpr std::size_t kBytesOfToken = 8;

  bool emit() {
    std::string_view text = decoder_.text();
    if (text.starts_with(kToolCallPiece)) {
      text.remove_prefix(kToolCallPiece.size());
    }
    if (text.size() <= emitted_) {
      return true;
    }
    const std::string_view fresh = text.substr(emitted_);
    emitted_ = text.size();
    return on_text_(fresh);
  }

  TextDecoder decoder_;
  const std::function<bool(std::string_view)>& on_text_;
  std::size_t emitted_ = 0;
};

// Tools of other styles (OpenAI's and MCP's wrappers) become the plain list that models are trained
// on. Text that is no list of tools is left as it is.
std::string plain_tools(const std::string& tools_json) {
  JsonValue::Array declared;
  try {
    for (Tool& tool : parse_tools_text(tools_json)) {
      declared.push_back(std::move(tool.declared));
    }
  } catch (const DataError&) {
    return tools_json;
  }
  return write_compact(JsonValue::array(std::move(declared)));
}

// What a model says that calls nothing.
std::vector<TokenId> no_call_ids(const Tokenizer& tokenizer) {
  std::vector<TokenId> ids = tokenizer.encode("[]");
  ids.insert(ids.begin(), kToolCallId);
  return ids;
}

template <typename Answer>
std::vector<RankedAnswer> ranked_answers(const NBest& best, Answer answer) {
  std::vector<RankedAnswer> scored;
  for (const ScoredTokens& tokens : best.answers) {
    const std::string text = answer(tokens.ids);
    const double probability = std::exp(tokens.log_probability);
    const auto same = std::ranges::find(scored, text, &RankedAnswer::text);
    if (same != scored.end()) {
      same->probability += probability;
    } else {
      scored.push_back({.text = text, .probability = probability});
    }
  }
  std::ranges::stable_sort(scored, std::ranges::greater(), &RankedAnswer::probability);
  return scored;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

struct FunctionCaller::LazyTexts {
  std::shared_ptr<const TokenTexts> of(const Tokenizer& tokenizer) {
    std::call_once(once, [&] { texts = std::make_shared<const TokenTexts>(tokenizer); });
    return texts;
  }
  std::once_flag once;
  std::shared_ptr<const TokenTexts> texts;
};

// A request's tools as the model reads them: the same for every query.
struct FunctionCaller::PreparedTools {
  NormalizedTools names;
  std::vector<TokenId> ids;
};

FunctionCaller::FunctionCaller(const Engine& engine, const Tokenizer& tokenizer,
                               PromptConfig prompt, NameStyle name_style,
                               std::optional<Calibration> calibration)
    : engine_(engine),
      tokenizer_(tokenizer),
      prompt_(prompt),
      name_style_(name_style),
      calibration_(std::move(calibration)),
      token_texts_(std::make_shared<LazyTexts>()),
      grammars_(std::make_shared<GrammarSource>(tokenizer)),
      tools_(std::make_shared<LruCache<PreparedTools>>(kKeptTools, kKeptToolBytes)) {
  NEEDLE_CHECK(engine.vocab_size() == tokenizer.vocab_size(),
               "the model has {} tokens, the tokenizer {}: they do not belong together",
               engine.vocab_size(), tokenizer.vocab_size());
}

std::shared_ptr<const FunctionCaller::PreparedTools> FunctionCaller::prepared_tools(
    const CallRequest& request) const {
  return tools_->find_or_make((request.normalize_names ? 'n' : 'w') + request.tools_json, [&] {
    const bool reference = name_style_ == NameStyle::kReference;
    NormalizedTools names{.tools_json = request.tools_json, .original_by_snake = {}};
    if (request.normalize_names) {
      names = normalize_tool_names(reference ? request.tools_json : plain_tools(request.tools_json),
                                   name_style_, prompt_.json_escapes);
    }
    auto prepared = std::make_shared<PreparedTools>();
    prepared->ids = tokenizer_.encode(names.tools_json, special_text());
    prepared->names = std::move(names);
    return std::shared_ptr<const PreparedTools>(std::move(prepared));
  });
}

EncoderPrompt FunctionCaller::prompt_of(const CallRequest& request,
                                        const PreparedTools& tools) const {
  return encode_prompt(tokenizer_, prompt_, request.query, tools.ids, special_text());
}

SpecialText FunctionCaller::special_text() const {
  return name_style_ == NameStyle::kReference ? SpecialText::kSpecial : SpecialText::kPlain;
}

std::int64_t FunctionCaller::prompt_overflow(const CallRequest& request) const {
  const EncoderPrompt prompt = prompt_of(request, *prepared_tools(request));
  return prompt.cut_query_tokens + prompt.cut_tools_tokens;
}

std::int64_t FunctionCaller::budget_of(const CallRequest& request) const {
  return std::max<std::int64_t>(1, std::min(request.max_gen_len, prompt_.max_dec_len));
}

std::unique_ptr<Constraint> FunctionCaller::constraint_of(
    const CallRequest& request, const NormalizedTools& tools,
    std::vector<Unenforced>& unenforced) const {
  if (request.constrain != Constrain::kGrammar) {
    const bool plain = !request.calls.tool && request.calls.min_calls == 0 &&
                       request.calls.max_calls < 0 && request.grounding == Grounding::kOff &&
                       request.grounded.empty() && request.response_schema.empty() &&
                       !request.strict;
    if (!plain) {
      throw ConfigError(
          "a choice of tools, a number of calls, grounding, a response schema and strictness need "
          "the "
          "grammar; constrain is another");
    }
    if (request.constrain == Constrain::kNone) {
      return nullptr;
    }
    const bool reference = name_style_ == NameStyle::kReference;
    return std::make_unique<NameConstraint>(
        token_texts_->of(tokenizer_), tools.tools_json,
        reference ? DeclaredKeys::kReference : DeclaredKeys::kSchema);
  }
  const auto model_name = [&tools](const std::string& own) {
    const auto found = std::ranges::find(tools.original_by_snake, own,
                                         &std::pair<std::string, std::string>::second);
    return found == tools.original_by_snake.end() ? own : found->first;
  };
  GrammarOptions options{.escapes = prompt_.json_escapes, .grounding = request.grounding};
  for (const std::string& name : request.grounded) {
    const std::string whole = model_name(name);
    const std::size_t point = name.rfind('.');
    const bool parameter = whole == name && point != std::string::npos;
    options.grounded.push_back(parameter ? model_name(name.substr(0, point)) + name.substr(point)
                                         : whole);
  }
  const std::string_view tools_json =
      tools.tools_json.empty() ? "[]" : std::string_view(tools.tools_json);
  const std::shared_ptr<const Grammar> grammar =
      request.response_schema.empty() ? grammars_->of_tools(tools_json, options)
                                      : grammars_->of_schema(request.response_schema, options);
  unenforced = grammar->unenforced();
  if (request.strict && !unenforced.empty()) {
    throw DataError(format("{}: '{}' can't be enforced: {} (strict)", unenforced.front().path,
                           unenforced.front().keyword, unenforced.front().reason));
  }
  CallLimits limits = request.calls;
  if (limits.tool) {
    limits.tool = model_name(*limits.tool);
  }
  auto constraint = std::make_unique<GrammarConstraint>(grammar, tokenizer_, limits, request.query);
  if (constraint->min_tokens() > budget_of(request) - 1) {
    throw ConfigError(
        format("max_gen_len {} is too small: the shortest answer may take {} tokens; ask for at "
               "least {}{}",
               budget_of(request), constraint->min_tokens(), constraint->min_tokens() + 1,
               prompt_.max_dec_len <= constraint->min_tokens()
                   ? format(" (the model's limit is {})", prompt_.max_dec_len)
                   : std::string()));
  }
  return constraint;
}

void FunctionCaller::prepare(const CallRequest& request) const {
  std::vector<Unenforced> unenforced;
  constraint_of(request, prepared_tools(request)->names, unenforced);
}

// One answer in the making. Stays where it is: its callbacks point into it.
struct FunctionCaller::Answer {
  // Reads the prompt, unless it is cancelled: then there is no session.
  Answer(const FunctionCaller& own_caller, const CallRequest& own_request)
      : caller(own_caller),
        request(own_request),
        prepared(caller.prepared_tools(request)),
        constraint(caller.constraint_of(request, prepared->names, result.unenforced)),
        fresh(request.n_best > 0 && constraint ? constraint->clone() : nullptr),
        stream(caller.tokenizer_, request.on_text,
               request.on_text ? caller.budget_of(request) : 0) {
    EncoderPrompt prompt = caller.prompt_of(request, *prepared);
    result.cut_query_tokens = prompt.cut_query_tokens;
    result.cut_tools_tokens = prompt.cut_tools_tokens;
    result.prompt_ids = std::move(prompt.ids);
    options.max_gen_len = caller.budget_of(request);
    options.constraint = constraint.get();
    options.detail = request.detail;
    options.alternatives = request.alternatives;
    if (request.detail != StepDetail::kNone) {
      no_call = no_call_ids(caller.tokenizer_);
      options.watched = no_call;
    }
    if (request.on_text || request.cancelled) {
      options.on_token = [this](TokenId token) {
        return !(request.cancelled && request.cancelled()) &&
               (!request.on_text || stream.add(token));
      };
    }
  }
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  void read_prompt() {
    const auto start = std::chrono::steady_clock::now();
    session =
        caller.engine_.start_unless(request.cancelled, result.prompt_ids, options.max_gen_len);
    result.prefill_seconds = seconds_since(start);
    if (session == nullptr) {
      result.stop = StopReason::kCancelled;
    }
  }

  CallResult finish(GeneratedTokens generated);

  std::string own_names(std::string text) const {
    const NormalizedTools& tools = prepared->names;
    if (request.constrain == Constrain::kGrammar && text.starts_with(' ')) {
      text.erase(0, 1);  // the tokenizer's space before every text
    }
    return tools.original_by_snake.empty()
               ? text
               : replace_invalid_utf8(restore_tool_names(text, tools, caller.prompt_.json_escapes));
  }

  const FunctionCaller& caller;
  const CallRequest& request;
  CallResult result;
  std::shared_ptr<const PreparedTools> prepared;
  std::unique_ptr<Constraint> constraint;
  std::unique_ptr<Constraint> fresh;  // for n_best
  TextStream stream;
  std::vector<TokenId> no_call;
  GenerateOptions options;
  std::unique_ptr<EngineSession> session;
};

CallResult FunctionCaller::Answer::finish(GeneratedTokens generated) {
  if (request.on_text && generated.stop != StopReason::kCancelled) {
    stream.finish();
  }
  const Tokenizer& tokenizer = caller.tokenizer_;
  if (request.detail != StepDetail::kNone) {
    result.confidence = answer_confidence(tokenizer.decode(generated.ids),
                                          token_ends(tokenizer, generated.ids), generated);
    if (caller.calibration_) {
      calibrate(*caller.calibration_, *result.confidence);
    }
  }
  result.ids = std::move(generated.ids);
  result.steps = std::move(generated.steps);
  result.forced_tokens = generated.forced_tokens;
  result.chosen_tokens = generated.chosen_tokens;
  result.stop = generated.stop;
  result.raw_text = without_tool_call(tokenizer.decode(result.ids));
  result.text = own_names(result.raw_text);
  if (request.n_best > 0 && result.stop != StopReason::kCancelled) {
    const NBest best = n_best_tokens(*session, fresh.get(),
                                     {.count = request.n_best,
                                      .max_gen_len = options.max_gen_len,
                                      .cancelled = request.cancelled});
    if (best.cancelled) {
      result.stop = StopReason::kCancelled;
    } else {
      result.n_best = ranked_answers(best, [&](std::span<const TokenId> ids) {
        return own_names(without_tool_call(tokenizer.decode(ids)));
      });
    }
  }
  return std::move(result);
}

CallResult FunctionCaller::call(const CallRequest& request) const {
  return std::move(call_batch({&request, 1}).front());
}

std::vector<CallResult> FunctionCaller::call_batch(std::span<const CallRequest> requests) const {
  std::vector<std::unique_ptr<Answer>> answers;
  for (const CallRequest& request : requests) {
    answers.push_back(std::make_unique<Answer>(*this, request));
  }
  std::vector<GenerateRequest> started;
  for (const auto& answer : answers) {
    answer->read_prompt();
    if (answer->session != nullptr) {
      started.push_back({.session = answer->session.get(), .options = &answer->options});
    }
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<GeneratedTokens> generated =
      started.size() == 1 ? std::vector{generate_tokens(*started[0].session, *started[0].options)}
                          : generate_batch(engine_, started);
  const double seconds = seconds_since(start);
  std::vector<CallResult> results;
  auto next = generated.begin();
  for (const auto& answer : answers) {
    if (answer->session == nullptr) {
      results.push_back(std::move(answer->result));
      continue;
    }
    answer->result.decode_seconds = seconds;
    results.push_back(answer->finish(std::move(*next++)));
  }
  return results;
}

}  // namespace needle
