// needle-load-probe: the same questions to the bare engine and to a running needle-serve, timed and
// compared. scripts/bench/serving/load.py starts it; it says what it found as one JSON object.
//
// Every request carries a tag that its reply must repeat (an unknown field, listed back in
// needle.ignored), and its calls must be those that the bare engine gave for the same question: a
// lost or mixed-up reply cannot go unseen. Of a stream every event must come, in order and with the
// stream's own id.
#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "needle/calls/call.h"
#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/core/exit_code.h"
#include "needle/core/json.h"
#include "needle/decode/retrieve.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/runtime/loaded_model.h"
#include "needle/server/chat_response.h"

#include "tests/server/server_models.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

struct Settings {
  std::string model;
  std::string write_models;  // a folder: put the tests' models there and do nothing else
  int port = 0;
  std::size_t clients = 32;
  std::size_t threads = 2;  // of the bare engine: as many as the server has workers
  std::size_t requests = 1000;
  std::size_t alone = 500;  // requests of one client, for the overhead without a queue
  std::size_t engine_requests = 100'000;  // of the bare engine at most
  double seconds = 60;                    // at most, of each part
  // Of 100 requests to the server and of the bare engine's; the rest are plain chat requests.
  std::size_t streams = 0, embeddings = 0, ranks = 0;
};

enum class Kind { kChat, kStream, kEmbedding, kRank };

// Spread evenly, the same for server and engine.
Kind kind_of(const Settings& settings, std::size_t i) {
  const std::size_t place = i * 37 % 100;
  return place < settings.streams                                          ? Kind::kStream
         : place < settings.streams + settings.embeddings                  ? Kind::kEmbedding
         : place < settings.streams + settings.embeddings + settings.ranks ? Kind::kRank
                                                                           : Kind::kChat;
}

// One question: as the engine takes it, as a client sends it, and what must come back.
struct Case {
  CallRequest request;
  std::string body_begin;  // then the tag, then "\":1}"
  std::string expected;    // stands in the reply
  std::string expected_embedding, expected_ranks;
};

std::string tools_json(std::size_t variant) {
  std::string list = "[";
  for (const std::string_view name : {"set_alarm", "play_music", "send_message"}) {
    list += format(
        R"({}{{"name":"{}_{}","description":"Do it","parameters":{{"type":"object","properties":{{"text":{{"type":"string","maxLength":24}}}},"required":["text"]}}}})",
        list.size() == 1 ? "" : ",", name, variant);
  }
  return list + "]";
}

std::vector<Case> make_cases(std::size_t count) {
  std::vector<Case> cases;
  for (std::size_t i = 0; i < count; ++i) {
    Case item;
    item.request.query = format("please do number {} at {} o'clock", i, i % 24);
    item.request.tools_json = tools_json(i % 16);
    item.request.calls = {.min_calls = 1, .max_calls = 1};
    item.body_begin = format(
        R"({{"messages":[{{"role":"user","content":"{}"}}],"tools":{},"tool_choice":"required","parallel_tool_calls":false,"tag_)",
        item.request.query, item.request.tools_json);
    cases.push_back(std::move(item));
  }
  return cases;
}

// What a reply says of these calls.
std::string calls_in_reply(const std::string& answer) {
  std::string text;
  for (const Call& call : complete_calls(answer)) {
    const auto function = JsonValue::object(
        {{"name", JsonValue::string(call.name)},
         {"arguments", JsonValue::string(write_compact(call.arguments, JsonEscapes::kUtf8))}});
    text +=
        write_compact(JsonValue::object({{"function", function}}), JsonEscapes::kUtf8).substr(1);
  }
  return text;
}

std::string embedding_in_reply(const runtime::LoadedModel& model, const Case& item) {
  JsonValue vector = JsonValue::array();
  for (const float value : model.engine().embed(model.tokenizer().encode(item.request.query))) {
    vector.items().push_back(JsonValue::number(value));
  }
  return "\"embedding\":" + write_compact(vector);
}

std::string ranks_in_reply(const runtime::LoadedModel& model, const Case& item) {
  const std::vector<Tool> tools = parse_tools_text(item.request.tools_json);
  const RetrieveOptions options{.json_escapes = model.prompt_config().json_escapes};
  const ToolIndex index(model.engine(), model.tokenizer(),
                        tool_texts(item.request.tools_json, options.json_escapes), options);
  JsonValue list = JsonValue::array();
  for (const RankedTool& ranked : index.rank(item.request.query, tools.size())) {
    list.items().push_back(
        JsonValue::object({{"index", JsonValue::integer(static_cast<std::int64_t>(ranked.index))},
                           {"name", JsonValue::string(tools[ranked.index].name)},
                           {"score", JsonValue::number(ranked.score)}}));
  }
  return "\"data\":" + write_compact(list);
}

std::string http_request(const Case& item, std::size_t tag, Kind kind = Kind::kChat) {
  std::string path = "/v1/chat/completions";
  std::string body = item.body_begin;
  if (kind == Kind::kEmbedding) {
    path = "/v1/embeddings";
    body = format(R"({{"input":"{}","tag_)", item.request.query);
  } else if (kind == Kind::kRank) {
    path = "/v1/rank";
    body =
        format(R"({{"query":"{}","tools":{},"tag_)", item.request.query, item.request.tools_json);
  }
  body += format("{}\":1{}}}", tag, kind == Kind::kStream ? ",\"stream\":true" : "");
  return format(
      "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\n\r\n{}",
      path, body.size(), body);
}

// The body that came in chunks; nothing if it is not whole.
std::optional<std::string> joined_chunks(std::string_view rest) {
  std::string body;
  for (;;) {
    std::size_t size = 0;
    const std::size_t line = rest.find("\r\n");
    if (line == std::string_view::npos ||
        std::from_chars(rest.data(), rest.data() + line, size, 16).ptr != rest.data() + line ||
        rest.size() < line + 2 + size + 2 || rest.substr(line + 2 + size, 2) != "\r\n") {
      return {};
    }
    if (size == 0) {
      return body;
    }
    body += rest.substr(line + 2, size);
    rest.remove_prefix(line + 2 + size + 2);
  }
}

// What the events of one stream say: they all have its id, the role comes first, then the call, the
// reason, the end. "" if one is missing, doubled, or of another stream.
std::string events_in_order(std::string_view reply) {
  const std::size_t head = reply.find("\r\n\r\n");
  const auto body =
      head == std::string_view::npos ? std::nullopt : joined_chunks(reply.substr(head + 4));
  if (!body) {
    return "";
  }
  std::vector<std::string_view> events;
  for (std::string_view rest = *body; !rest.empty();) {
    const std::size_t end = rest.find("\n\n");
    if (!rest.starts_with("data: ") || end == std::string_view::npos) {
      return "";
    }
    events.push_back(rest.substr(6, end - 6));
    rest.remove_prefix(end + 2);
  }
  constexpr std::array<std::string_view, 4> kOrder = {R"("role":"assistant")", R"("tool_calls":[)",
                                                      R"("finish_reason":"tool_calls")",
                                                      R"("needle":)"};
  if (events.size() != kOrder.size() + 1 || events.back() != "[DONE]") {
    return "";
  }
  const std::string_view id = events[0].substr(0, events[0].find(','));
  for (std::size_t i = 0; i < kOrder.size(); ++i) {
    if (!events[i].starts_with(id) || events[i].find(kOrder[i]) == std::string_view::npos) {
      return "";
    }
  }
  return *body;
}

class Client {
 public:
  explicit Client(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    NEEDLE_CHECK(
        ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
        "nobody answers on port {}", port);
  }
  ~Client() { ::close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Head and body of the reply; what came if the connection ends before it is whole.
  std::string ask(const std::string& request) {
    for (std::size_t sent = 0; sent < request.size();) {
      const ssize_t count =
          ::send(socket_, request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) {
        return "";
      }
      sent += static_cast<std::size_t>(count);
    }
    std::string reply;
    std::size_t whole = std::string::npos;
    bool chunked = false;
    while (reply.size() < whole && !(chunked && reply.ends_with("\r\n0\r\n\r\n"))) {
      char bytes[16384];
      const ssize_t count = ::recv(socket_, bytes, sizeof bytes, 0);
      if (count <= 0) {
        return reply;
      }
      reply.append(bytes, static_cast<std::size_t>(count));
      if (const std::size_t head = reply.find("\r\n\r\n");
          whole == std::string::npos && head != std::string::npos) {
        constexpr std::string_view kLength = "Content-Length: ";
        const std::size_t at = reply.find(kLength);
        chunked = reply.find("Transfer-Encoding: chunked\r\n") < head;
        if (chunked) {
          continue;
        }
        std::size_t length = 0;
        std::from_chars(reply.data() + at + kLength.size(), reply.data() + head, length);
        whole = head + 4 + length;
      }
    }
    return reply;
  }

 private:
  int socket_;
};

// A server that only does the work: what a request takes beside that, no server on this machine can
// do without.
class BareSocket {
 public:
  // `work(i)`: on the socket's own thread.
  explicit BareSocket(std::function<void(std::size_t)> work) : work_(std::move(work)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    NEEDLE_CHECK(::bind(listener_, reinterpret_cast<const sockaddr*>(&address), length) == 0 &&
                     ::listen(listener_, 1) == 0 &&
                     ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) == 0,
                 "no port is free");
    thread_ = std::thread([this] { serve(); });
    client_ = std::make_unique<Client>(ntohs(address.sin_port));
  }
  ~BareSocket() {
    client_.reset();
    thread_.join();
    ::close(listener_);
  }
  BareSocket(const BareSocket&) = delete;
  BareSocket& operator=(const BareSocket&) = delete;

  // Milliseconds from the request's first byte to the reply's last, without the work.
  double ask(const std::string& request, std::size_t i, std::string reply) {
    index_ = i;
    request_bytes_ = request.size();
    reply_ = std::move(reply);
    const auto start = Clock::now();
    client_->ask(request);
    return milliseconds_since(start) - work_ms_;
  }

 private:
  void serve() {
    const int connection = ::accept(listener_, nullptr, nullptr);
    const int on = 1;
    ::setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (;;) {
      std::size_t received = 0;
      do {
        char bytes[16384];
        const ssize_t count = ::recv(connection, bytes, sizeof bytes, 0);
        if (count <= 0) {
          ::close(connection);
          return;
        }
        received += static_cast<std::size_t>(count);
      } while (received < request_bytes_);
      const auto start = Clock::now();
      work_(index_);
      work_ms_ = milliseconds_since(start);
      ::send(connection, reply_.data(), reply_.size(), MSG_NOSIGNAL);
    }
  }

  const std::function<void(std::size_t)> work_;
  const int listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
  std::unique_ptr<Client> client_;
  std::thread thread_;
  // Written by one side before it sends, read by the other after it received.
  std::atomic<std::size_t> index_ = 0, request_bytes_ = 1;
  std::atomic<double> work_ms_ = 0;
  std::string reply_;
};

double percentile(std::vector<double> values, double share) {
  if (values.empty()) {
    return 0;
  }
  std::ranges::sort(values);
  return values[std::min(values.size() - 1,
                         static_cast<std::size_t>(share * static_cast<double>(values.size())))];
}

// Does work(i) for i = first.. on `threads` threads until `count` are done or the time is over; how
// many were done.
template <typename Work>
std::size_t answer(std::size_t threads, std::size_t first, std::size_t count, double seconds,
                   const Work& work) {
  std::atomic<std::size_t> next = first, finished = 0;
  std::vector<std::thread> pool;
  const auto start = Clock::now();
  for (std::size_t t = 0; t < threads; ++t) {
    pool.emplace_back([&] {
      auto state = work.start();
      for (std::size_t i = next++; i < first + count && milliseconds_since(start) < 1e3 * seconds;
           i = next++) {
        work.run(state, i);
        ++finished;
      }
    });
  }
  for (std::thread& thread : pool) {
    thread.join();
  }
  return finished;
}

struct EngineWork {
  const Settings& settings;
  const runtime::LoadedModel& model;
  std::vector<Case>& cases;
  int start() const { return 0; }
  void run(int, std::size_t i) const {
    const Case& item = cases[i % cases.size()];
    const Kind kind = kind_of(settings, i);
    if (kind == Kind::kEmbedding || kind == Kind::kRank) {
      NEEDLE_CHECK(
          !(kind == Kind::kRank ? ranks_in_reply(model, item) : embedding_in_reply(model, item))
               .empty(),
          "the engine said nothing");
      return;
    }
    const CallResult result = model.call(item.request);
    NEEDLE_CHECK(!result.text.empty(), "the engine said nothing");
  }
};

struct Failures {
  std::mutex mutex;
  std::size_t lost = 0, wrong = 0, refused = 0;
  std::string example;
  void add(std::size_t Failures::*kind, const std::string& reply) {
    const std::lock_guard lock(mutex);
    ++(this->*kind);
    example = reply.substr(0, 2000);
  }
};

struct ServerWork {
  const Settings& settings;
  const std::vector<Case>& cases;
  int port;
  Failures& failures;
  std::vector<double>& latencies;  // ms by request
  std::vector<double>& overheads;  // ms by request: what neither the queue nor the model took
  std::unique_ptr<Client> start() const { return std::make_unique<Client>(port); }
  void run(std::unique_ptr<Client>& client, std::size_t i) const { ask(client, i); }
  std::string ask(std::unique_ptr<Client>& client, std::size_t i) const {
    const Case& item = cases[i % cases.size()];
    const Kind kind = kind_of(settings, i);
    const std::string request = http_request(item, i, kind);
    const auto start = Clock::now();
    const std::string reply = client->ask(request);
    latencies[i] = milliseconds_since(start);
    if (reply.starts_with("HTTP/1.1 429")) {
      failures.add(&Failures::refused, reply);
      return reply;
    }
    const std::string said = kind == Kind::kStream ? events_in_order(reply) : reply;
    const std::string& expected = kind == Kind::kEmbedding ? item.expected_embedding
                                  : kind == Kind::kRank    ? item.expected_ranks
                                                           : item.expected;
    if (!reply.starts_with("HTTP/1.1 200") || said.empty() ||
        !(kind == Kind::kStream ? said.ends_with("[DONE]\n\n") : said.ends_with("}"))) {
      failures.add(&Failures::lost, reply);
      client = std::make_unique<Client>(port);
    } else if (said.find(expected) == std::string::npos ||
               said.find(format("\"tag_{}\"", i)) == std::string::npos) {
      failures.add(&Failures::wrong, reply);
    } else if (kind == Kind::kChat || kind == Kind::kStream) {
      overheads[i] = latencies[i] - number(said, "\"queue_ms\":") - number(said, "\"model_ms\":");
    }
    return reply;
  }
  static double number(const std::string& reply, std::string_view key) {
    const std::size_t at = reply.find(key);
    NEEDLE_CHECK(at != std::string::npos, "the reply lacks {}", key);
    return std::strtod(reply.c_str() + at + key.size(), nullptr);
  }
};

// CPU time of this process, all threads.
double cpu_milliseconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto milliseconds = [](const timeval& time) {
    return 1e3 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_usec);
  };
  return milliseconds(used.ru_utime) + milliseconds(used.ru_stime);
}

// One side of the comparison, summed over its rounds.
struct Side {
  std::size_t requests = 0;
  double seconds = 0, cpu_ms = 0;

  template <typename Work>
  void round(std::size_t threads, std::size_t first, std::size_t count, double most,
             const Work& work) {
    const double cpu_before = cpu_milliseconds();
    const auto start = Clock::now();
    requests += answer(threads, first, count, most, work);
    seconds += 1e-3 * milliseconds_since(start);
    cpu_ms += cpu_milliseconds() - cpu_before;
  }
  double per_second() const { return static_cast<double>(requests) / seconds; }
  double cpu_per_request() const { return cpu_ms / static_cast<double>(requests); }
};

Json spread(std::vector<double> values) {
  std::erase(values, 0.0);  // not asked any more: the time was over
  return {{"p50", percentile(values, .5)},
          {"p99", percentile(values, .99)},
          {"max", percentile(values, 1)}};
}

void write_models(const std::filesystem::path& folder) {
  NEEDLE_CHECK(test::write_trained_model(folder / "model.needle") &&
                   test::write_slow_model(folder / "slow.needle") &&
                   test::write_large_model(folder / "large.needle"),
               "the golden checkpoints are missing");
}

void expect_what_the_engine_says(const runtime::LoadedModel& model, std::vector<Case>& cases) {
  for (Case& item : cases) {
    item.expected = calls_in_reply(model.call(item.request).text);
    item.expected_embedding = embedding_in_reply(model, item);
    item.expected_ranks = ranks_in_reply(model, item);
    NEEDLE_CHECK(!item.expected.empty(), "the model calls nothing for: {}", item.request.query);
  }
}

// One client: nothing waits. A bare socket in turns with the server, so that the machine is as
// noisy for both.
void ask_alone(const Settings& settings, const ServerWork& work, const EngineWork& bare,
               Json& report) {
  std::vector<double> bare_overheads(settings.alone);
  BareSocket socket([&bare](std::size_t i) { bare.run(0, i); });
  auto client = work.start();
  std::size_t count = 0;
  const auto start = Clock::now();
  for (; count < settings.alone && milliseconds_since(start) < 2e3 * settings.seconds; ++count) {
    const std::string reply = work.ask(client, count);
    bare_overheads[count] = socket.ask(
        http_request(work.cases[count % work.cases.size()], count, kind_of(settings, count)), count,
        reply);
  }
  report["alone_requests"] = count;
  report["alone_latency_ms"] = spread(work.latencies);
  report["alone_overhead_ms"] = spread(work.overheads);
  report["bare_socket_overhead_ms"] = spread(bare_overheads);
}

void run(const Settings& settings) {
  runtime::keep_buffers();  // as the server does: what is compared is the rest
  std::vector<Case> cases = make_cases(256);
  const auto model = runtime::LoadedModel::load(settings.model);
  expect_what_the_engine_says(model, cases);
  Json report;
  Failures failures;
  const EngineWork bare{settings, model, cases};
  std::vector<double> latencies(settings.alone), overheads(settings.alone);
  ask_alone(settings, {settings, cases, settings.port, failures, latencies, overheads}, bare,
            report);
  latencies.assign(settings.requests, 0);
  overheads = latencies;
  const ServerWork work{settings, cases, settings.port, failures, latencies, overheads};
  Side engine, server;
  // In turns, so that a machine that becomes faster or slower does so for both.
  constexpr std::size_t kRounds = 8;
  for (std::size_t round = 0; round < kRounds; ++round) {
    const std::size_t first = settings.requests * round / kRounds;
    const std::size_t count = settings.requests * (round + 1) / kRounds - first;
    engine.round(settings.threads, first, std::min(count, settings.engine_requests / kRounds),
                 settings.seconds / kRounds, bare);
    server.round(settings.clients, first, count, settings.seconds / kRounds, work);
  }
  report["engine_per_second"] = engine.per_second();
  report["engine_requests"] = engine.requests;
  report["engine_cpu_ms"] = engine.cpu_per_request();
  report["server_per_second"] = server.per_second();
  report["server_requests"] = server.requests;
  report["client_cpu_ms"] = server.cpu_per_request();
  report["server_latency_ms"] = spread(latencies);
  report["throughput_share"] = server.per_second() / engine.per_second();
  report["lost"] = failures.lost;
  report["wrong"] = failures.wrong;
  report["refused"] = failures.refused;
  if (!failures.example.empty()) {
    report["example"] = failures.example;
  }
  std::cout << report.dump(1, ' ', true) << '\n';
}

Settings parse(int argc, char** argv) {
  Settings settings;
  const std::map<std::string, std::size_t Settings::*> counts = {
      {"--clients", &Settings::clients},       {"--threads", &Settings::threads},
      {"--requests", &Settings::requests},     {"--engine-requests", &Settings::engine_requests},
      {"--alone", &Settings::alone},           {"--streams", &Settings::streams},
      {"--embeddings", &Settings::embeddings}, {"--ranks", &Settings::ranks}};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--model") {
      settings.model = argv[i + 1];
    } else if (name == "--write-models") {
      settings.write_models = argv[i + 1];
    } else if (name == "--port") {
      settings.port = std::stoi(argv[i + 1]);
    } else if (name == "--seconds") {
      settings.seconds = std::stod(argv[i + 1]);
    } else if (const auto found = counts.find(name); found != counts.end()) {
      settings.*found->second = std::stoul(argv[i + 1]);
    } else {
      throw ConfigError(name + ": no such option");
    }
  }
  if (settings.write_models.empty() && (settings.model.empty() || settings.port == 0)) {
    throw ConfigError(
        "usage: needle-load-probe --model FILE --port PORT [--clients N] [--threads N] "
        "[--requests N] [--alone N] [--engine-requests N] [--seconds S] [--streams PERCENT] "
        "[--embeddings PERCENT] [--ranks PERCENT], or --write-models FOLDER");
  }
  return settings;
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  return needle::run_main([&] {
    const needle::Settings settings = needle::parse(argc, argv);
    settings.write_models.empty() ? needle::run(settings)
                                  : needle::write_models(settings.write_models);
  });
}
