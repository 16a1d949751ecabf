#include "needle/train/rank_monitor.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <sstream>
#include <thread>
#include <utility>

#include <unistd.h>

#include "needle/core/error.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string key_of(std::int64_t rank) { return format("beat/{}", rank); }

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// What one rank tells: "BEAT COLLECTIVES STEP_MS PID HOST STATUS text".
struct Sign {
  std::int64_t beat = 0;
  std::int64_t collectives = 0;
  double step_ms = 0.0;
  std::int64_t pid = 0;
  std::string host = "?";
  std::string status = "runs";  // or "ended", "failed"
  std::string text;

  std::string to_text() const {
    return format("{} {} {} {} {} {} {}", beat, collectives, step_ms, pid, host, status, text);
  }
  static Sign parse(const std::string& line) {
    Sign sign;
    std::istringstream stream(line);
    stream >> sign.beat >> sign.collectives >> sign.step_ms >> sign.pid >> sign.host >> sign.status;
    stream.get();
    std::getline(stream, sign.text, '\0');
    return sign;
  }
};

struct Peer {
  Sign sign;
  bool seen = false;
  Clock::time_point heard;     // when its beat last changed
  Clock::time_point advanced;  // when its number of collectives last changed
  int slow_beats = 0;
  bool slow_told = false;
};

}  // namespace

struct RankMonitor::State {
  std::unique_ptr<RankBoard> board;
  std::int64_t rank = 0;
  RankMonitorOptions options;
  std::vector<std::string> keys;
  Clock::time_point start = Clock::now();

  std::atomic<std::int64_t> collectives{0};
  std::atomic<double> step_ms{0.0};

  mutable std::mutex mutex;
  mutable std::condition_variable changed;
  std::vector<Peer> peers;  // by rank
  std::string status = "runs";
  std::string text;
  std::optional<std::string> failure;
  std::optional<Clock::time_point> beating;  // since when the thread waits for the board
  Clock::time_point looked = Clock::now();   // when it last heard from it
  bool stop = false;
  bool posted = true;  // the last status reached the board
  std::thread thread;

  std::string name_of(std::int64_t other) const {
    const Peer& peer = peers[static_cast<std::size_t>(other)];
    return peer.seen ? format("rank {} (pid {} on {})", other, peer.sign.pid, peer.sign.host)
                     : format("rank {}", other);
  }

  void fail(std::string message) {
    if (!failure) {
      failure = std::move(message);
      changed.notify_all();
    }
  }

  // The board's host may be frozen: its socket is open, and an answer never comes.
  void judge_board() {
    if (beating && status == "runs" && seconds_since(*beating) > options.silence_s) {
      fail(
          format("{}, which keeps the ranks in touch, has not answered for {:.0f} s: it is frozen "
                 "or cannot be reached",
                 board_owner(), seconds_since(*beating)));
    }
  }

  std::string board_owner() const {
    return options.board_owner.empty() ? name_of(0) : options.board_owner;
  }

  void note(std::int64_t other, const std::string& line) {
    Peer& peer = peers[static_cast<std::size_t>(other)];
    if (!peer.seen) {
      peer.heard = peer.advanced = Clock::now();
    }
    if (line.empty()) {
      return;
    }
    const Sign sign = Sign::parse(line);
    if (!peer.seen || sign.beat != peer.sign.beat) {
      peer.heard = Clock::now();
    }
    if (!peer.seen || sign.collectives != peer.sign.collectives) {
      peer.advanced = Clock::now();
    }
    peer.sign = sign;
    peer.seen = true;
  }

  void judge(std::int64_t other) {
    const Peer& peer = peers[static_cast<std::size_t>(other)];
    if (other == rank || peer.sign.status == "ended") {
      return;
    }
    if (peer.sign.status == "failed") {
      fail(format("{} stopped: {}", name_of(other), peer.sign.text));
    } else if (peer.seen && seconds_since(peer.heard) > options.silence_s) {
      fail(
          format("{} gave no sign of life for {:.0f} s: it was killed, is frozen or cannot be "
                 "reached",
                 name_of(other), seconds_since(peer.heard)));
    } else if (!peer.seen && seconds_since(start) > options.silence_s + options.progress_s) {
      fail(format("{} never came", name_of(other)));
    } else if (peer.sign.collectives < collectives.load() &&
               seconds_since(peer.advanced) > options.progress_s) {
      fail(format("{} hangs: alive, but {} collective operations behind for {:.0f} s",
                  name_of(other), collectives.load() - peer.sign.collectives,
                  seconds_since(peer.advanced)));
    }
  }

  // This rank did not look for longer than between two beats: it was stopped (with the others, by
  // a scheduler or a debugger), or the board was slow. That is no silence of theirs.
  void forgive_own_absence() {
    const auto now = Clock::now();
    const auto beat =
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.beat_s));
    const auto lost = now - looked - beat;
    looked = now;
    if (lost > beat) {
      start += lost;
      for (Peer& peer : peers) {
        peer.heard += lost;
        peer.advanced += lost;
      }
    }
  }

  // Called with the lock held; returns what to say about slow ranks.
  std::vector<std::string> judge_speed() {
    std::vector<double> times;
    for (const Peer& peer : peers) {
      if (peer.sign.step_ms > 0.0) {
        times.push_back(peer.sign.step_ms);
      }
    }
    std::vector<std::string> messages;
    if (times.size() < 2) {
      return messages;
    }
    // The lower median: with two ranks the faster one is the measure.
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>((times.size() - 1) / 2);
    std::nth_element(times.begin(), middle, times.end());
    for (std::size_t i = 0; i < peers.size(); ++i) {
      Peer& peer = peers[i];
      const bool slow = peer.sign.step_ms > options.slow_factor * *middle;
      peer.slow_beats = slow ? peer.slow_beats + 1 : 0;
      peer.slow_told = slow && peer.slow_told;
      if (peer.slow_beats >= options.slow_beats && !peer.slow_told) {
        peer.slow_told = true;
        messages.push_back(
            format("{} is slow: {:.0f} ms of work a step, the median rank {:.0f}; all wait for it",
                   name_of(static_cast<std::int64_t>(i)), peer.sign.step_ms, *middle));
      }
    }
    return messages;
  }

  void beat(std::int64_t number) {
    Sign own{.beat = number,
             .collectives = collectives.load(),
             .step_ms = step_ms.load(),
             .pid = getpid(),
             .host = host_name()};
    {
      const std::lock_guard lock(mutex);
      own.status = status;
      own.text = text;
      beating = Clock::now();
    }
    board->post(key_of(rank), own.to_text());
    const std::vector<std::string> lines = board->read(keys);
    std::vector<std::string> slow;
    {
      const std::lock_guard lock(mutex);
      beating.reset();
      posted = posted || own.status == status;
      forgive_own_absence();
      for (std::int64_t other = 0; other < static_cast<std::int64_t>(lines.size()); ++other) {
        note(other, lines[static_cast<std::size_t>(other)]);
        judge(other);
      }
      slow = judge_speed();
      changed.notify_all();
    }
    for (const std::string& message : slow) {
      if (options.on_slow) {
        options.on_slow(message);
      }
    }
  }

  bool all_others_ended() const {
    for (std::size_t i = 0; i < peers.size(); ++i) {
      if (static_cast<std::int64_t>(i) != rank && peers[i].sign.status != "ended") {
        return false;
      }
    }
    return true;
  }

  void run() {
    for (std::int64_t number = 1;; ++number) {
      try {
        beat(number);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        posted = true;  // nobody is left to tell
        beating.reset();
        if (status == "runs" && !all_others_ended()) {
          std::string reason = error.what();
          reason = reason.substr(0, reason.find('\n'));
          fail(
              format("{}, which keeps the ranks in touch, cannot be reached any more: it was "
                     "killed, is frozen or its host is gone ({})",
                     board_owner(), reason));
        }
        changed.notify_all();
        return;
      }
      std::unique_lock lock(mutex);
      if (stop) {
        return;
      }
      changed.wait_for(lock, std::chrono::duration<double>(options.beat_s),
                       [&] { return stop || !posted; });
    }
  }
};

RankMonitor::RankMonitor(std::unique_ptr<RankBoard> board, std::int64_t rank, std::int64_t world,
                         const RankMonitorOptions& options)
    : state_(std::make_shared<State>()) {
  state_->board = std::move(board);
  state_->rank = rank;
  state_->options = options;
  state_->peers.resize(static_cast<std::size_t>(world));
  for (std::int64_t other = 0; other < world; ++other) {
    state_->keys.push_back(key_of(other));
  }
  state_->thread = std::thread([state = state_] { state->run(); });
}

RankMonitor::~RankMonitor() {
  bool stuck = false;
  {
    std::unique_lock lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_all();
    state_->changed.wait_for(lock, std::chrono::seconds(2), [&] { return !state_->beating; });
    stuck = state_->beating.has_value();
  }
  // A thread that waits for a frozen host for ever is left behind; it holds the state itself.
  stuck ? state_->thread.detach() : state_->thread.join();
}

void RankMonitor::passed_collective() { ++state_->collectives; }

void RankMonitor::worked(double step_seconds) {
  // Smoothed, so that one validation or one page fault is not a slow rank.
  const double before = state_->step_ms.load();
  const double now = 1000.0 * step_seconds;
  state_->step_ms.store(before == 0.0 ? now : 0.8 * before + 0.2 * now);
}

void RankMonitor::post_failure(std::string_view message) {
  std::unique_lock lock(state_->mutex);
  state_->status = "failed";
  state_->text = std::string(message);
  state_->posted = false;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, std::chrono::seconds(2), [&] { return state_->posted; });
}

void RankMonitor::post_end() {
  std::unique_lock lock(state_->mutex);
  state_->status = "ended";
  state_->posted = false;
  state_->changed.notify_all();
  state_->changed.wait_for(lock, std::chrono::seconds(2), [&] { return state_->posted; });
}

bool RankMonitor::others_ended(double patience_s) const {
  std::unique_lock lock(state_->mutex);
  return state_->changed.wait_for(lock, std::chrono::duration<double>(patience_s),
                                  [&] { return state_->all_others_ended(); });
}

std::optional<std::string> RankMonitor::failure() const {
  const std::lock_guard lock(state_->mutex);
  state_->judge_board();
  return state_->failure;
}

std::optional<std::string> RankMonitor::diagnose(double patience_s) const {
  const auto start = Clock::now();
  std::unique_lock lock(state_->mutex);
  while (!state_->failure && seconds_since(start) < patience_s) {
    state_->judge_board();
    state_->changed.wait_for(lock, std::chrono::milliseconds(100));
  }
  state_->judge_board();  // this process may have been stopped since it last looked
  return state_->failure;
}

}  // namespace needle
