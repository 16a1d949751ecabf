#include "needle/capi/needle.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/decode/retrieve.h"
#include "needle/runtime/loaded_model.h"

struct needle_model {
  std::shared_ptr<const needle::runtime::LoadedModel> loaded;
};

struct needle_session {
  std::shared_ptr<const needle::runtime::LoadedModel> model;  // keeps it alive
  std::string tools_json;
  std::string text;  // of the last result
  std::atomic<bool> cancelled = false;
  std::optional<needle::ToolIndex> index;  // made by the first ranking
};

namespace {

using Clock = std::chrono::steady_clock;

// One a thread, so that a message is not overwritten by another thread's failure. A fixed array:
// storing a message must not fail.
thread_local std::array<char, 1024> last_error{};  // NOLINT(cppcoreguidelines-avoid-non-const-*)

needle_status fail(needle_status status, std::string_view message) noexcept {
  const std::size_t size = std::min(message.size(), last_error.size() - 1);
  std::copy_n(message.data(), size, last_error.data());
  last_error[size] = '\0';
  return status;
}

// Runs `body` and turns what it throws into a status.
template <class Body>
needle_status guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const needle::FileError& error) {
    return fail(NEEDLE_FILE_ERROR, error.what());
  } catch (const needle::FormatError& error) {
    return fail(NEEDLE_FORMAT_ERROR, error.what());
  } catch (const needle::DataError& error) {
    return fail(NEEDLE_DATA_ERROR, error.what());
  } catch (const needle::ConfigError& error) {
    return fail(NEEDLE_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return fail(NEEDLE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(NEEDLE_ERROR, error.what());
  } catch (...) {
    return fail(NEEDLE_ERROR, "an exception of an unknown type");
  }
}

needle_status missing(std::string_view function, std::string_view argument) noexcept {
  return guarded([&] {
    return fail(NEEDLE_INVALID_ARGUMENT, needle::format("{}: {} is null", function, argument));
  });
}

// An empty text may come as a null pointer.
bool is_text(const char* text, std::size_t bytes) { return text != nullptr || bytes == 0; }
std::string_view view(const char* text, std::size_t bytes) {
  return bytes == 0 ? std::string_view() : std::string_view(text, bytes);
}

struct Callback {
  needle_text_callback function = nullptr;
  void* user = nullptr;
  std::optional<Clock::time_point> deadline;
  bool threw = false;
  bool late = false;
  bool refused = false;

  bool operator()(needle_session& session, std::string_view text) {
    try {
      refused = function(user, text.data(), text.size()) == 0;
    } catch (...) {  // a C++ caller's: it must not pass through callers in other languages
      threw = true;
    }
    return !threw && !refused && !stop(session);
  }
  // Asked between the layers that read the prompt and at every token, too.
  bool stop(const needle_session& session) {
    late = late || (deadline && Clock::now() >= *deadline);
    return late || session.cancelled.load(std::memory_order_relaxed);
  }
};

needle_stop stop_of(needle::StopReason stop, const Callback& callback) {
  switch (stop) {
    case needle::StopReason::kEos:
      return NEEDLE_STOP_EOS;
    case needle::StopReason::kMaxTokens:
      return NEEDLE_STOP_MAX_TOKENS;
    case needle::StopReason::kCancelled:
      break;
  }
  return callback.late && !callback.refused && !callback.threw ? NEEDLE_STOP_DEADLINE
                                                               : NEEDLE_STOP_CANCELLED;
}

void fill(needle_session& session, const needle::CallResult& call, needle_stop stop,
          needle_result& result) {
  session.text = call.text;
  result = {.text = session.text.c_str(),
            .text_bytes = session.text.size(),
            .stop = stop,
            .prompt_tokens = std::ssize(call.prompt_ids),
            .tokens = std::ssize(call.ids),
            .cut_tokens = call.cut_query_tokens + call.cut_tools_tokens,
            .prefill_ms = 1e3 * call.prefill_seconds,
            .decode_ms = 1e3 * call.decode_seconds};
}

// Before anything is generated: what is wrong with the items of a batch.
void check(std::string_view function, std::span<const needle_batch_item> items) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    const needle_batch_item& item = items[i];
    const auto same = [&](const needle_batch_item& one) { return one.session == item.session; };
    if (item.options != nullptr && item.options->max_tokens < 0) {
      throw needle::ConfigError(
          needle::format("{}: max_tokens = {}; expected 1 or more, or 0 for the default", function,
                         item.options->max_tokens));
    }
    if (item.session->model != items[0].session->model) {
      throw needle::ConfigError(needle::format(
          "{}: session {} of {} is of another model than the first", function, i, items.size()));
    }
    if (std::ranges::any_of(items.first(i), same)) {
      throw needle::ConfigError(
          needle::format("{}: session {} of {} is there twice", function, i, items.size()));
    }
  }
}

needle::CallRequest call_request(const needle_batch_item& item, Callback& callback) {
  needle_session& session = *item.session;
  needle::CallRequest request;
  request.query = view(item.query, item.query_bytes);
  request.tools_json = session.tools_json;
  if (item.options != nullptr && item.options->max_tokens > 0) {
    request.max_gen_len = item.options->max_tokens;
  }
  if (item.on_text != nullptr) {
    request.on_text = [&](std::string_view text) { return callback(session, text); };
  }
  request.cancelled = [&] { return callback.stop(session); };
  return request;
}

needle_status generate(std::string_view function, std::span<needle_batch_item> items) {
  for (const needle_batch_item& item : items) {
    if (item.session == nullptr || !is_text(item.query, item.query_bytes)) {
      return missing(function, item.session == nullptr ? "session" : "query");
    }
  }
  return guarded([&] {
    const auto start = Clock::now();
    check(function, items);
    std::vector<Callback> callbacks(items.size());
    std::vector<needle::CallRequest> requests;
    std::vector<std::size_t> begun;  // indices of items
    for (std::size_t i = 0; i < items.size(); ++i) {
      needle_batch_item& item = items[i];
      const std::int64_t max_ms = item.options != nullptr ? item.options->max_ms : -1;
      item.session->cancelled = false;
      item.result = {};
      if (max_ms == 0) {
        fill(*item.session, {}, NEEDLE_STOP_DEADLINE, item.result);
        continue;
      }
      callbacks[i] = {.function = item.on_text, .user = item.user, .deadline = {}};
      if (max_ms > 0) {
        // Beyond a day the sum could overflow, and nobody waits.
        constexpr std::int64_t kLongestMs = 86'400'000;
        callbacks[i].deadline = start + std::chrono::milliseconds(std::min(max_ms, kLongestMs));
      }
      requests.push_back(call_request(item, callbacks[i]));
      begun.push_back(i);
    }
    if (requests.empty()) {
      return NEEDLE_OK;
    }
    const auto calls = items[0].session->model->call_batch(requests);
    bool threw = false;
    for (std::size_t i = 0; i < begun.size(); ++i) {
      const Callback& callback = callbacks[begun[i]];
      needle_batch_item& item = items[begun[i]];
      fill(*item.session, calls[i], stop_of(calls[i].stop, callback), item.result);
      threw = threw || callback.threw;
    }
    return threw ? fail(NEEDLE_CALLBACK_ERROR, needle::format("{}: the callback threw", function))
                 : NEEDLE_OK;
  });
}

needle::runtime::Numerics numerics_of(std::int32_t float_numerics) {
  using needle::runtime::Numerics;
  switch (float_numerics) {
    case 0:
      return Numerics::kMixed;
    case 2:
      return Numerics::kInt16;
    case 3:
      return Numerics::kInt8;
    default:
      return Numerics::kFloat;
  }
}

needle::runtime::LoadOptions load_options(const needle_load_options* options) {
  if (options == nullptr) {
    return {};
  }
  return {.threads = options->threads,
          .verify_checksums = options->skip_checksums == 0,
          .numerics = numerics_of(options->float_numerics)};
}

needle_status take_model(needle::runtime::LoadedModel loaded, needle_model*& model) {
  model = new needle_model{std::make_shared<const needle::runtime::LoadedModel>(std::move(loaded))};
  return NEEDLE_OK;
}

}  // namespace

int needle_abi_version(void) { return NEEDLE_ABI_VERSION; }

const char* needle_last_error(void) { return last_error.data(); }

needle_status needle_model_load(const char* path, const needle_load_options* options,
                                needle_model** model) {
  if (model == nullptr || path == nullptr) {
    return missing("needle_model_load", model == nullptr ? "model" : "path");
  }
  *model = nullptr;
  return guarded([&] {
    return take_model(needle::runtime::LoadedModel::load(path, load_options(options)), *model);
  });
}

needle_status needle_model_load_memory(const void* data, size_t bytes,
                                       const needle_load_options* options, needle_model** model) {
  if (model == nullptr || data == nullptr) {
    return missing("needle_model_load_memory", model == nullptr ? "model" : "data");
  }
  *model = nullptr;
  return guarded([&] {
    return take_model(needle::runtime::LoadedModel::load_memory(
                          {static_cast<const std::byte*>(data), bytes}, load_options(options)),
                      *model);
  });
}

void needle_model_free(needle_model* model) { delete model; }

needle_status needle_session_create(const needle_model* model, const char* tools_json,
                                    size_t tools_bytes, needle_session** session) {
  if (session == nullptr || model == nullptr || !is_text(tools_json, tools_bytes)) {
    return missing("needle_session_create", session == nullptr ? "session"
                                            : model == nullptr ? "model"
                                                               : "tools_json");
  }
  *session = nullptr;
  return guarded([&] {
    auto made = std::make_unique<needle_session>();
    made->model = model->loaded;
    made->tools_json = tools_bytes == 0 ? "[]" : std::string(tools_json, tools_bytes);
    needle::tool_texts(made->tools_json);  // throws if they are not tools
    *session = made.release();
    return NEEDLE_OK;
  });
}

void needle_session_free(needle_session* session) { delete session; }

needle_status needle_generate(needle_session* session, const char* query, size_t query_bytes,
                              const needle_generate_options* options, needle_text_callback on_text,
                              void* user, needle_result* result) {
  if (result == nullptr) {
    return missing("needle_generate", "result");
  }
  needle_batch_item item{.session = session,
                         .query = query,
                         .query_bytes = query_bytes,
                         .options = options,
                         .on_text = on_text,
                         .user = user,
                         .result = {}};
  const needle_status status = generate("needle_generate", {&item, 1});
  *result = item.result;
  return status;
}

needle_status needle_generate_batch(needle_batch_item* items, size_t count) {
  if (items == nullptr && count > 0) {
    return missing("needle_generate_batch", "items");
  }
  return generate("needle_generate_batch", {items, count});
}

void needle_session_cancel(needle_session* session) {
  if (session != nullptr) {
    session->cancelled = true;
  }
}

needle_status needle_embed(const needle_model* model, const char* text, size_t text_bytes,
                           float* values, size_t* count) {
  if (model == nullptr || count == nullptr || !is_text(text, text_bytes) ||
      (values == nullptr && *count > 0)) {
    return missing("needle_embed", model == nullptr   ? "model"
                                   : count == nullptr ? "count"
                                                      : "text or values");
  }
  return guarded([&] {
    const auto& loaded = *model->loaded;
    const auto embedding =
        needle::embed_text(loaded.engine(), loaded.tokenizer(), view(text, text_bytes),
                           {.json_escapes = loaded.prompt_config().json_escapes});
    const std::size_t room = *count;
    *count = embedding.size();
    if (room < embedding.size()) {
      return fail(NEEDLE_INVALID_ARGUMENT,
                  needle::format("needle_embed: room for {} values; an embedding has {}", room,
                                 embedding.size()));
    }
    std::copy(embedding.begin(), embedding.end(), values);
    return NEEDLE_OK;
  });
}

needle_status needle_rank_tools(needle_session* session, const char* query, size_t query_bytes,
                                needle_ranked_tool* tools, size_t* count) {
  if (session == nullptr || count == nullptr || !is_text(query, query_bytes) ||
      (tools == nullptr && *count > 0)) {
    return missing("needle_rank_tools", session == nullptr ? "session"
                                        : count == nullptr ? "count"
                                                           : "query or tools");
  }
  return guarded([&] {
    if (!session->index) {
      const auto& loaded = *session->model;
      const needle::JsonEscapes escapes = loaded.prompt_config().json_escapes;
      session->index.emplace(loaded.engine(), loaded.tokenizer(),
                             needle::tool_texts(session->tools_json, escapes),
                             needle::RetrieveOptions{.json_escapes = escapes});
    }
    const auto ranked = session->index->rank(view(query, query_bytes), *count);
    *count = ranked.size();
    for (std::size_t i = 0; i < ranked.size(); ++i) {
      tools[i] = {.index = ranked[i].index, .score = ranked[i].score};
    }
    return NEEDLE_OK;
  });
}
