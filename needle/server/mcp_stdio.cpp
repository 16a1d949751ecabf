// McpRouter over two streams: a thread listens, another one works.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <istream>
#include <mutex>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <utility>

#include "needle/server/child_process.h"
#include "needle/server/json_rpc.h"
#include "needle/server/mcp_router.h"

namespace needle {
namespace {

struct Request {
  std::string id;  // as JSON
  std::string line;
};

// Requests in the order of their arrival, of which each can be cancelled until it is answered.
class Inbox {
 public:
  void add(Request request) {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(request));
    changed_.notify_one();
  }
  void cancel(const std::string& id) {
    const std::lock_guard lock(mutex_);
    std::erase_if(waiting_, [&](const Request& request) { return request.id == id; });
    if (id == running_) {
      cancelled_ = true;
    }
  }
  void end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_one();
  }
  // Nothing once all is answered after the end.
  std::optional<Request> next() {
    std::unique_lock lock(mutex_);
    running_.clear();
    cancelled_ = false;
    changed_.wait(lock, [&] { return ended_ || !waiting_.empty(); });
    if (waiting_.empty()) {
      return {};
    }
    Request request = std::move(waiting_.front());
    waiting_.pop_front();
    running_ = request.id;
    return request;
  }
  bool cancelled() const { return cancelled_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> waiting_;
  std::string running_;
  std::atomic<bool> cancelled_ = false;
  bool ended_ = false;
};

// False at the end of the input. A line that is too long is read and left out.
bool read_line(std::istream& in, std::string& line, bool& too_long) {
  line.clear();
  too_long = false;
  for (int c = in.get(); c != std::char_traits<char>::eof(); c = in.get()) {
    if (c == '\n') {
      return true;
    }
    if (line.size() < ChildProcess::kMaxLineBytes) {
      line.push_back(static_cast<char>(c));
    } else {
      too_long = true;
    }
  }
  return !line.empty();
}

}  // namespace

void McpRouter::run(std::istream& in, std::ostream& out) {
  std::mutex out_mutex;
  const auto write = [&](const std::string& line) {
    if (!line.empty()) {
      const std::lock_guard lock(out_mutex);
      out << line << '\n' << std::flush;
    }
  };
  Inbox inbox;
  std::thread worker([&] {
    while (const auto request = inbox.next()) {
      write(answer(request->line, [&] { return inbox.cancelled(); }));
    }
  });
  std::string line;
  for (bool too_long = false; read_line(in, line, too_long);) {
    if (too_long) {
      write(rpc_error({}, RpcError::kInvalidRequest, "the message is too long"));
      continue;
    }
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    const JsonParseResult message = parse_json_value(line);
    const JsonValue* method = message.value ? message.value->find("method") : nullptr;
    const JsonValue* id = message.value ? message.value->find("id") : nullptr;
    const std::string name = method != nullptr && method->is_string() ? method->as_string() : "";
    if (name == "notifications/cancelled") {
      const JsonValue* params = message.value->find("params");
      const JsonValue* which = params == nullptr ? nullptr : params->find("requestId");
      inbox.cancel(which == nullptr ? "" : write_compact(*which));
    } else if (id == nullptr || name == "ping") {
      write(answer(line));
    } else {
      inbox.add({.id = write_compact(*id), .line = line});
    }
  }
  inbox.end();
  worker.join();
}

}  // namespace needle
