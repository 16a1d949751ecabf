// POST /v1/chat/completions.
#include <chrono>
#include <ctime>
#include <memory>
#include <utility>

#include "needle/server/api_error.h"
#include "needle/server/body.h"
#include "needle/server/chat_request.h"
#include "needle/server/chat_response.h"
#include "needle/server/service.h"

namespace needle {
namespace {

using Clock = Admission::Clock;

// Tools that do not fit would be cut, and the model would never choose them: better said than done.
void check_fit(const ServedModel& served, const ChatRequest& request) {
  const std::int64_t too_many = served.model.prompt_overflow(request.call);
  if (too_many > 0) {
    throw ApiError(400,
                   format("the prompt is {} tokens too long for the {} that this model reads; send "
                          "fewer tools (POST /v1/rank finds the best) or a shorter text",
                          too_many, served.model.prompt_config().max_enc_len),
                   {.code = "context_length_exceeded", .param = "messages"});
  }
}

// A request that names no tools gets those of the shelf. True if it did.
bool offer_shelf(JsonValue& body, const ToolShelf* shelf) {
  const auto given = [&](std::string_view key) {
    const JsonValue* value = body.find(key);
    return value != nullptr && !value->is_null();
  };
  if (shelf == nullptr || shelf->empty() || given("tools") || given("response_format")) {
    return false;
  }
  body.set("tools", shelf->tools());
  return true;
}

}  // namespace

struct Service::Completion {
  ChatRequest request;
  std::shared_ptr<const ServedModel> served;
  CompletionHead head;
  CompletionTimes times;
  Clock::time_point deadline;
  Admission::Ticket ticket;
  std::function<bool()> client_gone;

  // Generates; every text goes to `on_text`, if given, first. Throws ApiError 504 past the deadline
  // and 499 for a client that is gone.
  CallResult run(Metrics& metrics, const std::function<bool(std::string_view)>& on_text) {
    CallResult result;
    if (request.answer_nothing) {
      result.text = "[]";
      return result;
    }
    std::string text;
    bool stopped = false;
    // Asked at every token: too often to ask the system each time.
    auto next_look = Clock::now();
    request.call.cancelled = [&, next_look]() mutable {
      const auto now = Clock::now();
      if (now < next_look) {
        return false;
      }
      const bool over = now >= deadline || client_gone();
      next_look = over ? now : now + std::chrono::milliseconds(1);
      return over;
    };
    if (on_text || !request.stop.empty()) {
      request.call.on_text = [&](std::string_view piece) {
        text += piece;
        stopped = stop_position(text, request.stop) < text.size();
        return !stopped && (!on_text || on_text(piece));
      };
    }
    const auto started = Clock::now();
    try {
      result = served->model.call(request.call);
      times.model_ms = std::chrono::duration<double, std::milli>(Clock::now() - started).count();
    } catch (const Error& error) {  // tools or a schema that no answer can obey
      throw bad_request("", error.what());
    }
    metrics.count_tokens(std::ssize(result.prompt_ids), std::ssize(result.ids));
    if (result.stop == StopReason::kCancelled && !stopped) {
      if (Clock::now() >= deadline) {
        throw ApiError(504, "the answer took longer than a request may take", {.code = "timeout"});
      }
      metrics.count_cancelled();
      throw ApiError(499, "the client went away");
    }
    return result;
  }
};

HttpReply Service::chat(const HttpRequest& http) {
  const auto arrived = Clock::now();
  const auto work = std::make_shared<Completion>();
  work->deadline = arrived + std::chrono::milliseconds(options_.limits.deadline_ms);
  JsonValue body = parse_body(http.body);
  const bool from_shelf = offer_shelf(body, options_.shelf);
  work->request = parse_chat_request(body, options_.limits, tool_reader_);
  work->served = models_.open(work->request.model);
  work->client_gone = http.client_gone;
  work->head = {.id = format("chatcmpl-{}x{}", run_id_, ++requests_),
                .model = work->served->name,
                .created = std::time(nullptr),
                .fingerprint = "needle_" + work->served->fingerprint};
  const auto queued = Clock::now();
  const auto begin = [&] {
    work->times.queue_ms = std::chrono::duration<double, std::milli>(Clock::now() - queued).count();
    if (from_shelf && !work->request.answer_nothing) {
      CallRequest& call = work->request.call;
      call.tools_json =
          options_.shelf->fitting(*work->served, call.query, call.tools_json).tools_json;
    }
    check_fit(*work->served, work->request);
  };
  if (!work->request.stream) {
    CallResult result;
    run_in_turn(http, work->deadline, [&] {
      begin();
      result = work->run(metrics_, {});
    });
    return {.body = completion_text(work->head, work->request, result, work->times,
                                    &work->served->model.tokenizer())};
  }
  work->ticket = enter(http, work->deadline);
  begin();
  HttpReply reply{.content_type = "text/event-stream"};
  reply.headers["Cache-Control"] = "no-store";
  reply.stream = [this, work](const HttpReply::Write& write) {
    CompletionStream stream(work->head, work->request);
    try {
      write(stream.begin());
      const CallResult result = work->run(metrics_, [&](std::string_view piece) {
        const std::string events = stream.add(piece);
        return events.empty() || write(events);
      });
      work->ticket = {};
      write(stream.finish(result, work->times, &work->served->model.tokenizer()));
    } catch (const ApiError& error) {
      write(event(error.to_json()));
    } catch (const Error& error) {
      write(event(ApiError(500, error.what()).to_json()));
    }
    work->ticket = {};
  };
  return reply;
}

}  // namespace needle
