// POST /v1/embeddings and POST /v1/rank.
#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "needle/decode/retrieve.h"
#include "needle/server/api_error.h"
#include "needle/server/body.h"
#include "needle/server/service.h"

namespace needle {
namespace {

using Clock = Admission::Clock;

// One input: text, or token ids of this model's vocabulary.
struct EmbeddingInput {
  std::string text;
  std::vector<TokenId> tokens;
};

std::vector<TokenId> read_tokens(const JsonValue& list, const std::string& path,
                                 std::int64_t vocab_size) {
  std::vector<TokenId> tokens;
  for (const JsonValue& item : list.items()) {
    const auto id = item.is_integer() ? item.as_int64() : std::nullopt;
    if (!id || *id < 0 || *id >= vocab_size) {
      throw bad_request(
          path, format("expected token ids from 0 to {}, got {}", vocab_size - 1, excerpt(item)));
    }
    tokens.push_back(static_cast<TokenId>(*id));
  }
  return tokens;
}

std::vector<EmbeddingInput> read_inputs(const JsonValue& body, const ServerLimits& limits,
                                        std::int64_t vocab_size) {
  const JsonValue* input = body.find("input");
  std::vector<EmbeddingInput> inputs;
  const auto add = [&](const JsonValue& item, const std::string& path) {
    if (item.is_string() && !item.as_string().empty()) {
      inputs.push_back({.text = item.as_string()});
    } else if (item.is_array() && !item.items().empty()) {
      inputs.push_back({.tokens = read_tokens(item, path, vocab_size)});
    } else {
      throw bad_request(path, "expected a text or a list of token ids, not empty");
    }
    if (inputs.back().text.size() > limits.query_bytes) {
      throw bad_request(path, format("at most {} bytes are allowed", limits.query_bytes));
    }
  };
  if (input != nullptr && input->is_array() && !input->items().empty() &&
      !input->items()[0].is_integer()) {
    if (input->items().size() > limits.inputs) {
      throw bad_request("input", format("{} inputs: at most {} are allowed", input->items().size(),
                                        limits.inputs));
    }
    for (std::size_t i = 0; i < input->items().size(); ++i) {
      add(input->items()[i], format("input[{}]", i));
    }
  } else {
    add(input == nullptr ? JsonValue() : *input, "input");
  }
  return inputs;
}

// Cut as the model's own tools' texts are.
std::vector<TokenId> input_ids(const EmbeddingInput& input, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids = input.tokens.empty() ? tokenizer.encode(input.text) : input.tokens;
  ids.resize(
      std::min<std::size_t>(ids.size(), static_cast<std::size_t>(RetrieveOptions().max_tokens)));
  return ids;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) {
      text.push_back(i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63U] : '=');
    }
  }
  return text;
}

JsonValue vector_json(const std::vector<float>& vector, bool as_base64) {
  if (as_base64) {  // little-endian float32
    static_assert(std::endian::native == std::endian::little);
    std::string bytes(vector.size() * sizeof(float), '\0');
    std::memcpy(bytes.data(), vector.data(), bytes.size());
    return JsonValue::string(base64(bytes));
  }
  JsonValue list = JsonValue::array();
  for (const float value : vector) {
    list.items().push_back(JsonValue::number(value));
  }
  return list;
}

JsonValue text_list(const std::vector<std::string>& texts) {
  JsonValue list = JsonValue::array();
  for (const std::string& text : texts) {
    list.items().push_back(JsonValue::string(text));
  }
  return list;
}

void check_late(Clock::time_point deadline, const HttpRequest& http, Metrics& metrics) {
  if (Clock::now() >= deadline) {
    throw ApiError(504, "it took longer than a request may take", {.code = "timeout"});
  }
  if (http.client_gone()) {
    metrics.count_cancelled();
    throw ApiError(499, "the client went away");
  }
}

}  // namespace

HttpReply Service::embeddings(const HttpRequest& http) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(options_.limits.deadline_ms);
  constexpr std::array<std::string_view, 4> kFields = {"model", "input", "encoding_format",
                                                       "dimensions"};
  const JsonValue body = parse_body(http.body);
  const auto served = models_.open(read_string(body, "model").value_or(""));
  const auto& engine = served->model.engine();
  const auto inputs = read_inputs(body, options_.limits, engine.vocab_size());
  const std::string encoding = read_string(body, "encoding_format").value_or("float");
  if (encoding != "float" && encoding != "base64") {
    throw bad_request("encoding_format", "expected float or base64");
  }
  const auto dimensions = read_integer(body, "dimensions", 1, 1 << 20);

  JsonValue data = JsonValue::array();
  std::int64_t tokens = 0;
  run_in_turn(http, deadline, [&] {
    for (const EmbeddingInput& input : inputs) {
      check_late(deadline, http, metrics_);
      const std::vector<TokenId> ids = input_ids(input, served->model.tokenizer());
      tokens += std::ssize(ids);
      const std::vector<float> vector = engine.embed(ids);
      if (dimensions && *dimensions != std::ssize(vector)) {
        throw bad_request("dimensions", format("this model's embeddings have {}", vector.size()));
      }
      data.items().push_back(
          JsonValue::object({{"object", JsonValue::string("embedding")},
                             {"index", JsonValue::integer(std::ssize(data.items()))},
                             {"embedding", vector_json(vector, encoding == "base64")}}));
    }
  });
  metrics_.count_tokens(tokens, 0);
  JsonValue reply = JsonValue::object();
  reply.set("object", JsonValue::string("list"));
  reply.set("data", std::move(data));
  reply.set("model", JsonValue::string(served->name));
  reply.set("usage", JsonValue::object({{"prompt_tokens", JsonValue::integer(tokens)},
                                        {"total_tokens", JsonValue::integer(tokens)}}));
  reply.set("needle", JsonValue::object({{"ignored", text_list(unknown_fields(body, kFields))}}));
  return {.body = write_compact(reply)};
}

HttpReply Service::rank(const HttpRequest& http) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(options_.limits.deadline_ms);
  constexpr std::array<std::string_view, 4> kFields = {"model", "query", "tools", "top_k"};
  const JsonValue body = parse_body(http.body);
  const auto served = models_.open(read_string(body, "model").value_or(""));
  const std::string query = read_string(body, "query").value_or("");
  if (query.empty() || query.size() > options_.limits.query_bytes) {
    throw bad_request("query",
                      format("expected a text of 1 to {} bytes", options_.limits.query_bytes));
  }
  const auto read = tool_reader_.read(body);
  if (read->tools.empty()) {
    throw bad_request("tools", "expected at least one tool");
  }
  const auto top = read_integer(body, "top_k", 1, 1 << 20).value_or(std::ssize(read->tools));

  const auto escapes = served->model.prompt_config().json_escapes;
  const auto texts = tool_texts(read->json, escapes);
  const RetrieveOptions retrieve{.json_escapes = escapes};
  const auto& engine = served->model.engine();
  const auto& tokenizer = served->model.tokenizer();
  JsonValue data = JsonValue::array();
  run_in_turn(http, deadline, [&] {
    std::vector<std::vector<float>> embeddings;
    for (const std::string& text : texts) {
      check_late(deadline, http, metrics_);
      embeddings.push_back(
          ToolIndex(engine, tokenizer, std::span(&text, 1), retrieve).embeddings()[0]);
    }
    const ToolIndex index(engine, tokenizer, std::move(embeddings), retrieve);
    for (const RankedTool& tool : index.rank(query, static_cast<std::size_t>(top))) {
      data.items().push_back(
          JsonValue::object({{"index", JsonValue::integer(static_cast<std::int64_t>(tool.index))},
                             {"name", JsonValue::string(read->tools[tool.index].name)},
                             {"score", JsonValue::number(tool.score)}}));
    }
  });
  JsonValue reply = JsonValue::object();
  reply.set("object", JsonValue::string("list"));
  reply.set("data", std::move(data));
  reply.set("model", JsonValue::string(served->name));
  reply.set("needle", JsonValue::object({{"ignored", text_list(unknown_fields(body, kFields))}}));
  return {.body = write_compact(reply, JsonEscapes::kUtf8)};
}

}  // namespace needle
