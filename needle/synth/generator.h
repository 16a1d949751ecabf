// Function-call rows from tool schemas: templates and value generators, no network, no language
// model.
//
// A tool may carry a "templates" array of ways to ask for it, with parameters in braces ("wake me
// at {time}"); tools without one get requests built from their name, description and parameters.
// The key is stripped from the prompts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "needle/calls/call.h"
#include "needle/calls/tool.h"
#include "needle/core/random.h"
#include "needle/synth/values.h"

namespace needle {

struct SynthConfig {
  std::uint64_t seed = 42;
  std::int64_t min_tools = 1;
  std::int64_t max_tools = 4;
  double no_call_share = 0.12;
  double multi_call_share = 0.12;
  double optional_share =
      0.5;  // how often an optional parameter that a template does not need is given
  ValuePool values = ValuePool::kAll;

  // Throws ConfigError naming the field.
  void validate() const;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("seed", self.seed, "Row i follows from the seed and i alone");
    visit("min_tools", self.min_tools, "Fewest tools on offer in a row");
    visit("max_tools", self.max_tools, "Most tools on offer in a row");
    visit("no_call_share", self.no_call_share,
          "Rows that no tool on offer serves: small talk or a tool that is absent");
    visit("multi_call_share", self.multi_call_share, "Rows that ask for two or three calls");
    visit("optional_share", self.optional_share, "How often an optional parameter is mentioned");
    visit("values", self.values,
          "Value half to draw from: train and test are disjoint, all is both");
  }
};

struct SynthRow {
  std::string query;
  std::vector<Tool> tools;  // on offer, in order
  std::vector<Call> answers;

  std::string to_jsonl() const;  // {"query","tools","answers"} with JSON strings, without a newline
};

// Thread-safe: `row` is const and depends on nothing but config and index.
class RowGenerator {
 public:
  // Throws DataError for an empty tool list, a repeated name or a template naming an unknown
  // parameter.
  RowGenerator(std::vector<Tool> tools, const SynthConfig& config);
  SynthRow row(std::uint64_t index) const;

 private:
  struct Template {
    std::string text;
    std::vector<std::size_t> parameters;  // indices that appear in it
  };
  struct Source {
    Tool tool;  // without "templates"
    std::vector<Template> templates;
  };
  struct Request {
    std::string text;
    Call call;
  };
  Request request(const Source& source, Random& random) const;
  Request request_from_template(const Source& source, const Template& chosen, Random& random) const;
  Request request_from_schema(const Source& source, Random& random) const;

  std::vector<Source> sources_;
  SynthConfig config_;
};

// A plain-text row for pretraining: reading a value out of a sentence, repeating, listing. It
// teaches a small model to copy, which is what takes longest to learn.
struct SynthTextRow {
  std::string query;
  std::string seed_text;
  std::string answer;

  std::string to_jsonl() const;  // {"query","query_seed_text","synthetic_answer"}
};
SynthTextRow synth_text_row(const SynthConfig& config, std::uint64_t index);

}  // namespace needle
