#include <cstdint>
#include <iostream>
#include <memory>
#include <string>

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
  std::string constrain = std::string(kConstrainNames.name(Constrain::kNames));
  std::int64_t max_gen_len = 512;
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
                            .detail = options.trace        ? StepDetail::kTrace
                                      : options.confidence ? StepDetail::kConfidence
                                                           : StepDetail::kNone,
                            .n_best = options.n_best};
  const runtime::LoadedModel model = options.model.load();
  if (options.query_option->count() > 0) {
    answer(model, options, request, options.query);
    return;
  }
  if (::isatty(STDIN_FILENO) == 1) {
    std::cerr << "Queries, one a line; Ctrl-D ends.\n";
  }
  std::string query;
  while (next_query(query)) {
    answer(model, options, request, query);
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
                 "names: only declared tools and parameters can be written; none")
      ->capture_default_str();
  app.add_option("--max-gen-len", options->max_gen_len, "At most one token less than this")
      ->capture_default_str();
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
