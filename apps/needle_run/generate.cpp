#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/decode/trace.h"

#include "apps/needle_run/commands.h"

namespace needle {
namespace {

struct GenerateCommand {
  ModelOptions model;
  std::string tools;
  std::string query;
  CLI::Option* query_option = nullptr;
  std::string constrain = std::string(kConstrainNames.name(Constrain::kGrammar));
  std::string tool_choice = "auto";
  std::int64_t max_calls = -1;
  std::string ground = std::string(kGroundingNames.name(Grounding::kOff));
  std::vector<std::string> grounded;
  std::string schema;
  bool strict = false;
  std::int64_t max_gen_len = 512;
  std::int64_t top_k = 0;
  std::string index_file;
  bool confidence = false;
  bool trace = false;
  std::int64_t n_best = 0;
  bool json = false;
  bool stream = false;
  bool no_stream = false;
};

// One line for machines. `calls` is null if the text is not JSON; numbers keep their digits.
std::string json_line(const std::string& query, const CallResult& result,
                      const Tokenizer& tokenizer, bool trace) {
  JsonValue line = JsonValue::object();
  line.set("query", JsonValue::string(query));
  line.set("text", JsonValue::string(result.text));
  line.set("calls", parse_json_value(result.text).value.value_or(JsonValue()));
  line.set("stop", JsonValue::string(std::string(kStopReasonNames.name(result.stop))));
  line.set("prompt_tokens", JsonValue::integer(std::ssize(result.prompt_ids)));
  line.set("tokens", JsonValue::integer(std::ssize(result.ids)));
  line.set("forced_tokens", JsonValue::integer(result.forced_tokens));
  line.set("cut_query_tokens", JsonValue::integer(result.cut_query_tokens));
  line.set("cut_tools_tokens", JsonValue::integer(result.cut_tools_tokens));
  line.set("prefill_ms", JsonValue::number(1e3 * result.prefill_seconds));
  line.set("decode_ms", JsonValue::number(1e3 * result.decode_seconds));
  if (!result.unenforced.empty()) {
    JsonValue notes = JsonValue::array();
    for (const Unenforced& one : result.unenforced) {
      JsonValue note = JsonValue::object();
      note.set("path", JsonValue::string(one.path));
      note.set("keyword", JsonValue::string(one.keyword));
      note.set("reason", JsonValue::string(one.reason));
      notes.items().push_back(std::move(note));
    }
    line.set("unenforced", std::move(notes));
  }
  if (result.confidence) {
    line.set("confidence", to_json(*result.confidence, result, query));
  }
  if (!result.n_best.empty()) {
    JsonValue answers = JsonValue::array();
    for (const RankedAnswer& answer : result.n_best) {
      JsonValue entry = JsonValue::object();
      entry.set("text", JsonValue::string(answer.text));
      entry.set("probability", JsonValue::number(answer.probability));
      answers.items().push_back(std::move(entry));
    }
    line.set("n_best", std::move(answers));
  }
  if (trace) {
    line.set("trace", trace_json(result, tokenizer));
  }
  return write_compact(line, JsonEscapes::kUtf8);
}

void warn_if_cut(const CallResult& result) {
  if (result.cut_query_tokens + result.cut_tools_tokens > 0) {
    std::cerr << format(
        "warning: the prompt was cut: {} tokens of the query and {} of the tools "
        "did not fit\n",
        result.cut_query_tokens, result.cut_tools_tokens);
  }
}

void answer(const runtime::LoadedModel& model, const GenerateCommand& options, CallRequest request,
            const std::string& query) {
  const bool stream =
      !options.json && !options.no_stream && (options.stream || ::isatty(STDOUT_FILENO) == 1);
  request.query = query;
  std::string shown;
  if (stream) {
    request.on_text = [&shown](std::string_view text) {
      if (shown.empty()) {  // the space that follows <tool_call>
        text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
      }
      shown += text;
      std::cout << text << std::flush;
      return true;
    };
  }
  const CallResult result = model.call(request);
  if (options.json) {
    std::cout << json_line(query, result, model.tokenizer(), options.trace) << std::endl;
    return;
  }
  // What was streamed has the names as the model writes them, in snake_case.
  if (stream && shown == result.text) {
    std::cout << std::endl;
  } else {
    std::cout << (stream ? "\n" : "") << result.text << std::endl;
  }
  warn_if_cut(result);
}

CallLimits call_limits(const GenerateCommand& options) {
  CallLimits limits{.max_calls = options.max_calls};
  if (options.tool_choice == "none") {
    limits.max_calls = 0;
  } else if (options.tool_choice != "auto") {
    limits.min_calls = 1;
    if (options.tool_choice != "required") {
      limits.tool = options.tool_choice;
    }
  }
  return limits;
}

// Answers with all tools, or with the --top-k that fit each query best, in the order declared.
class Answerer {
 public:
  Answerer(const runtime::LoadedModel& model, const GenerateCommand& options, CallRequest request)
      : model_(model), options_(options), request_(std::move(request)) {
    if (options.top_k > 0) {
      tools_ = tool_texts(request_.tools_json, model.prompt_config().json_escapes);
      index_.emplace(make_tool_index(model, request_.tools_json, options.index_file));
    }
  }

  void operator()(const std::string& query) const {
    CallRequest request = request_;
    if (index_) {
      std::set<std::size_t> kept;
      for (const RankedTool& tool : index_->rank(query, static_cast<std::size_t>(options_.top_k))) {
        kept.insert(tool.index);
      }
      request.tools_json.clear();
      for (const std::size_t tool : kept) {
        request.tools_json += (request.tools_json.empty() ? "[" : ",") + tools_[tool];
      }
      request.tools_json = kept.empty() ? "[]" : request.tools_json + "]";
    }
    answer(model_, options_, std::move(request), query);
  }

 private:
  const runtime::LoadedModel& model_;
  const GenerateCommand& options_;
  CallRequest request_;
  std::vector<std::string> tools_;
  std::optional<ToolIndex> index_;
};

void generate(const GenerateCommand& options) {
  const auto constrain = kConstrainNames.parse(options.constrain);
  if (!constrain) {
    throw ConfigError(
        format("--constrain {}: expected one of {}", options.constrain, kConstrainNames.list()));
  }
  if (options.max_gen_len < 1) {
    throw ConfigError(format("--max-gen-len {}: expected at least 1", options.max_gen_len));
  }
  const CallRequest request{.query = {},
                            .tools_json = read_tools(options.tools),
                            .max_gen_len = options.max_gen_len,
                            .constrain = *constrain,
                            .calls = call_limits(options),
                            .grounding = *kGroundingNames.parse(options.ground),
                            .grounded = options.grounded,
                            .response_schema = read_schema(options.schema),
                            .strict = options.strict,
                            .detail = options.trace        ? StepDetail::kTrace
                                      : options.confidence ? StepDetail::kConfidence
                                                           : StepDetail::kNone,
                            .n_best = options.n_best};
  const runtime::LoadedModel model = options.model.load();
  const Answerer answer_query(model, options, request);
  if (options.query_option->count() > 0) {
    answer_query(options.query);
    return;
  }
  if (::isatty(STDIN_FILENO) == 1) {
    std::cerr << "Queries, one a line; Ctrl-D ends.\n";
  }
  std::string query;
  while (next_query(query)) {
    answer_query(query);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<GenerateCommand>();
  options->model.add_to(app);
  app.add_option("-t,--tools", options->tools,
                 "Tools: a JSON file or the JSON itself; without it none");
  options->query_option =
      app.add_option("-q,--query", options->query, "Query; without it one a line from stdin");
  app.add_option("--constrain", options->constrain,
                 "grammar: answers are valid by the tools' schemas and always whole; names: only "
                 "declared tools and parameters can be written, as in the reference; none")
      ->capture_default_str();
  app.add_option(
         "--tool-choice", options->tool_choice,
         "auto: any number of calls; required: at least one; none; or a tool's name: calls of "
         "this one")
      ->capture_default_str();
  app.add_option("--max-calls", options->max_calls, "At most N calls in an answer")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
         "--ground", options->ground,
         "auto: strings without a form of their own (enum, pattern, ...) must stand in the query")
      ->check(CLI::IsMember({"off", "auto"}))
      ->capture_default_str();
  app.add_option(
      "--grounded", options->grounded,
      "A tool, or tool.parameter, whose strings and numbers must stand in the query; repeatable");
  app.add_option(
      "--schema", options->schema,
      "JSON Schema (a file or the JSON itself): answer with one such value instead of calls");
  app.add_flag("--strict", options->strict,
               "Refuse tools with a keyword that can't be enforced; else --json lists them");
  app.add_option("--max-gen-len", options->max_gen_len, "At most one token less than this")
      ->capture_default_str();
  app.add_option("-k,--top-k", options->top_k,
                 "Show the model only the K tools that fit the query best, see retrieve")
      ->check(CLI::PositiveNumber);
  app.add_option("--index", options->index_file,
                 "With --top-k: file that keeps the tools' embeddings");
  app.add_flag("--json", options->json, "One JSON object a line");
  app.add_flag("--confidence", options->confidence,
               "How probable the answer, its calls and values are, and what no call is; as --json");
  app.add_option("--n-best", options->n_best, "The N most probable answers, too; as --json")
      ->check(CLI::Range(1, 100));
  app.add_flag("--trace", options->trace,
               "--confidence and what could follow at each token, slower; as --json");
  app.add_flag("--stream", options->stream, "Print while generating, also into a pipe");
  app.add_flag("--no-stream", options->no_stream, "Print complete answers, also on a terminal");
  app.final_callback([options, &app] {
    options->json |= options->confidence || options->trace || options->n_best > 0;
    if (app.get_subcommands().empty()) {
      generate(*options);
    }
  });
}

}  // namespace needle
