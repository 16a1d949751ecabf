// What a grammar saves: calls of a model whose every choice is the reference's, with and without
// the grammar, one after the other. The network computes what it has to (with random weights, too);
// only the token that its logits point to is replaced by the reference's, so that answers are the
// same.
//
// usage: needle-call-cost MODEL.needle THREADS REPEATS [auto] < rows {"query","tools","answers"}
//        auto: strings are grounded; the least time of the repeats counts
// One line a row: {"prompt","tokens","forced","prefill_ms","free_ms","grammar_ms"}, the last two
// the decoding; then one of sums. Rows whose reference does not fit their grammar are left out.
#include <algorithm>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "needle/runtime/loaded_model.h"

#include "tests/decode/reference_row.h"

namespace needle {
namespace {

class ReferenceSession final : public EngineSession {
 public:
  ReferenceSession(std::unique_ptr<EngineSession> network, std::span<const TokenId> reference,
                   std::int64_t vocab_size)
      : network_(std::move(network)),
        reference_(reference),
        logits_(static_cast<std::size_t>(vocab_size)) {}

  std::span<const float> feed(std::span<const TokenId> tokens, const TokenSet* wanted) override {
    network_->feed(tokens, wanted);
    logits_[static_cast<std::size_t>(shown_)] = 0;
    const auto next = static_cast<std::size_t>(network_->position() - 1);  // after the first eos
    shown_ = next < reference_.size() ? reference_[next] : kEosId;
    logits_[static_cast<std::size_t>(shown_)] = 1;
    return logits_;
  }
  std::int64_t position() const override { return network_->position(); }
  void rewind(std::int64_t position) override { network_->rewind(position); }

 private:
  std::unique_ptr<EngineSession> network_;
  std::span<const TokenId> reference_;  // the answer, eos included
  std::vector<float> logits_;
  TokenId shown_ = 0;
};

class ReferenceEngine final : public Engine {
 public:
  explicit ReferenceEngine(const Engine& network) : network_(network) {}

  std::int64_t vocab_size() const override { return network_.vocab_size(); }
  std::unique_ptr<EngineSession> start(std::span<const TokenId> prompt,
                                       std::int64_t max_tokens) const override {
    return std::make_unique<ReferenceSession>(network_.start(prompt, max_tokens), reference,
                                              vocab_size());
  }
  std::vector<float> embed(std::span<const TokenId> text) const override {
    return network_.embed(text);
  }

  std::vector<TokenId> reference;

 private:
  const Engine& network_;
};

struct Cost {
  double prefill_ms = std::numeric_limits<double>::infinity();
  double decode_ms = std::numeric_limits<double>::infinity();
};

void least(Cost& cost, const CallResult& result) {
  cost.prefill_ms = std::min(cost.prefill_ms, 1e3 * result.prefill_seconds);
  cost.decode_ms = std::min(cost.decode_ms, 1e3 * result.decode_seconds);
}

void print_costs(const char* kind, double prefill, double free, double grammar, JsonValue line) {
  line.set("kind", JsonValue::string(kind));
  line.set("prefill_ms", JsonValue::number(prefill));
  line.set("free_ms", JsonValue::number(free));
  line.set("grammar_ms", JsonValue::number(grammar));
  line.set("decoding_ratio", JsonValue::number(grammar / free));
  line.set("call_ratio", JsonValue::number((prefill + grammar) / (prefill + free)));
  std::cout << write_compact(line) << "\n";
}

void measure(const std::string& path, std::size_t threads, int repeats, Grounding grounding) {
  const auto model = runtime::LoadedModel::load(path, {.threads = threads});
  ReferenceEngine engine(model.engine());
  const FunctionCaller caller(engine, model.tokenizer(), model.prompt_config());
  double prefill = 0, free_time = 0, grammar_time = 0;
  std::int64_t rows = 0, left_out = 0, tokens = 0, forced = 0;
  std::string text;
  while (std::getline(std::cin, text)) {
    const test::ReferenceRow row(text);
    engine.reference = {kToolCallId};
    const std::vector<TokenId> answer = model.tokenizer().encode(row.answer);
    engine.reference.insert(engine.reference.end(), answer.begin(), answer.end());
    engine.reference.push_back(kEosId);
    const CallRequest free{
        .query = row.query, .tools_json = row.tools_json, .constrain = Constrain::kNone};
    const CallRequest bound{
        .query = row.query, .tools_json = row.tools_json, .grounding = grounding};
    Cost free_cost, grammar_cost;
    CallResult result;
    bool same = true;
    for (int repeat = 0; repeat < repeats && same; ++repeat) {
      const CallResult unbound = caller.call(free);
      result = caller.call(bound);
      same = unbound.ids == result.ids;
      least(free_cost, unbound);
      least(grammar_cost, result);
    }
    if (!same) {
      ++left_out;
      continue;
    }
    const double prompt_ms = std::min(free_cost.prefill_ms, grammar_cost.prefill_ms);
    JsonValue line = JsonValue::object();
    line.set("prompt", JsonValue::integer(std::ssize(result.prompt_ids)));
    line.set("tokens", JsonValue::integer(std::ssize(result.ids)));
    line.set("forced", JsonValue::integer(result.forced_tokens));
    print_costs("row", prompt_ms, free_cost.decode_ms, grammar_cost.decode_ms, std::move(line));
    prefill += prompt_ms;
    free_time += free_cost.decode_ms;
    grammar_time += grammar_cost.decode_ms;
    tokens += std::ssize(result.ids);
    forced += result.forced_tokens;
    ++rows;
  }
  JsonValue line = JsonValue::object();
  line.set("rows", JsonValue::integer(rows));
  line.set("left_out", JsonValue::integer(left_out));
  line.set("tokens", JsonValue::integer(tokens));
  line.set("forced", JsonValue::integer(forced));
  print_costs("all", prefill, free_time, grammar_time, std::move(line));
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() < 3) {
      std::cerr << "usage: needle-call-cost MODEL.needle THREADS REPEATS [auto] < rows\n";
      return 2;
    }
    const bool grounded = arguments.size() > 3 && arguments[3] == "auto";
    needle::measure(arguments[0], std::stoull(arguments[1]), std::stoi(arguments[2]),
                    grounded ? needle::Grounding::kAuto : needle::Grounding::kOff);
  } catch (const std::exception& error) {
    std::cerr << "needle-call-cost: " << error.what() << "\n";
    return 1;
  }
}
