#include "needle/capi/needle.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <new>
#include <optional>
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

needle::runtime::LoadOptions load_options(const needle_load_options* options) {
  if (options == nullptr) {
    return {};
  }
  return {.threads = options->threads,
          .verify_checksums = options->skip_checksums == 0,
          .numerics = options->float_numerics != 0 ? needle::runtime::Numerics::kFloat
                                                   : needle::runtime::Numerics::kInt8};
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
  if (session == nullptr || result == nullptr || !is_text(query, query_bytes)) {
    return missing("needle_generate", session == nullptr  ? "session"
                                      : result == nullptr ? "result"
                                                          : "query");
  }
  return guarded([&] {
    const auto start = Clock::now();
    const needle_generate_options settings =
        options != nullptr ? *options : needle_generate_options{.max_tokens = 0, .max_ms = -1};
    if (settings.max_tokens < 0) {
      throw needle::ConfigError(needle::format(
          "needle_generate: max_tokens = {}; expected 1 or more, or 0 for the default",
          settings.max_tokens));
    }
    session->cancelled = false;
    if (settings.max_ms == 0) {
      fill(*session, {}, NEEDLE_STOP_DEADLINE, *result);
      return NEEDLE_OK;
    }
    Callback callback{.function = on_text, .user = user, .deadline = {}};
    // Beyond a day the sum could overflow, and nobody waits.
    constexpr std::int64_t kLongestMs = 86'400'000;
    if (settings.max_ms > 0) {
      callback.deadline = start + std::chrono::milliseconds(std::min(settings.max_ms, kLongestMs));
    }
    needle::CallRequest request;
    request.query = view(query, query_bytes);
    request.tools_json = session->tools_json;
    if (settings.max_tokens > 0) {
      request.max_gen_len = settings.max_tokens;
    }
    if (on_text != nullptr) {
      request.on_text = [&](std::string_view text) { return callback(*session, text); };
    }
    request.cancelled = [&] { return callback.stop(*session); };
    const needle::CallResult call = session->model->call(request);
    fill(*session, call, stop_of(call.stop, callback), *result);
    return callback.threw ? fail(NEEDLE_CALLBACK_ERROR, "needle_generate: the callback threw")
                          : NEEDLE_OK;
  });
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
