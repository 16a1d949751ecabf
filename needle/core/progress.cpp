#include "needle/core/progress.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#include <unistd.h>

#include "needle/core/format.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSilence = std::chrono::seconds(2);
constexpr auto kRedrawEvery = std::chrono::milliseconds(100);
constexpr std::string_view kClearLine = "\r\x1b[K";

// Whether a bar stands on the terminal's last line; log.cpp asks, too.
std::atomic<bool> bar_on_screen{false};

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }

// "1:02:03" or "2:03"
std::string clock_text(double seconds) {
  const auto total = static_cast<std::uint64_t>(std::max(seconds, 0.0));
  const std::uint64_t minutes = total / 60;
  if (minutes < 60) {
    return format("{}:{:02}", minutes, total % 60);
  }
  return format("{}:{:02}:{:02}", minutes / 60, minutes % 60, total % 60);
}

// "1234567" as "1.23 M": a count that changes ten times a second need not show every digit.
std::string short_count(double count) {
  if (count >= 1e9) {
    return format("{:.2f} G", count / 1e9);
  }
  if (count >= 1e6) {
    return format("{:.2f} M", count / 1e6);
  }
  if (count >= 1e4) {
    return format("{:.1f} k", count / 1e3);
  }
  return count >= 100 || count == static_cast<double>(static_cast<std::uint64_t>(count))
             ? format("{:.0f}", count)
             : format("{:.1f}", count);
}

}  // namespace

namespace internal {

void clear_progress_line() noexcept {
  if (bar_on_screen.exchange(false)) {
    print(kClearLine);
    std::fflush(stderr);
  }
}

std::string progress_text(const ProgressLine& line) {
  constexpr std::size_t kBarWidth = 24;
  const double rate = line.seconds > 0.0 ? static_cast<double>(line.done) / line.seconds : 0.0;
  const std::string unit = line.unit.empty() ? "" : format(" {}", line.unit);
  std::string text(line.title);
  if (line.total > 0) {
    const double share =
        std::min(1.0, static_cast<double>(line.done) / static_cast<double>(line.total));
    const auto filled = static_cast<std::size_t>(share * static_cast<double>(kBarWidth));
    text += format(" [{}{}] {:3.0f} %  {}/{}{}", std::string(filled, '#'),
                   std::string(kBarWidth - filled, '.'), 100.0 * share,
                   short_count(static_cast<double>(line.done)),
                   short_count(static_cast<double>(line.total)), unit);
  } else {
    text += format(" {}{}", short_count(static_cast<double>(line.done)), unit);
  }
  text += format("  {}/s", short_count(rate));
  if (line.total > line.done && rate > 0.0) {
    text += format("  {} left", clock_text(static_cast<double>(line.total - line.done) / rate));
  } else {
    text += format("  {}", clock_text(line.seconds));
  }
  if (!line.note.empty()) {
    text += format("  {}", line.note);
  }
  return text;
}

}  // namespace internal

Progress::Progress(std::string_view title, std::uint64_t total, std::string_view unit)
    : title_(title),
      unit_(unit),
      total_(total),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_draw_(start_) {}

Progress::~Progress() {
  if (drawn_) {
    try {
      draw(/*force=*/true);
      print("\n");
      std::fflush(stderr);
    } catch (...) {  // out of memory while ending a bar: not worth the program
    }
    bar_on_screen = false;
  }
}

void Progress::advance(std::uint64_t count) { set(done_ + count); }

void Progress::set(std::uint64_t done) {
  done_ = done;
  draw(/*force=*/false);
}

void Progress::note(std::string_view text) {
  if (terminal_) {
    note_ = text;
  }
}

void Progress::draw(bool force) {
  if (!terminal_) {
    return;
  }
  const Clock::time_point now = Clock::now();
  if (!force && (now - start_ < kSilence || now - last_draw_ < kRedrawEvery)) {
    return;
  }
  print(std::string(kClearLine) +
        internal::progress_text({.title = title_,
                                 .unit = unit_,
                                 .note = note_,
                                 .done = done_,
                                 .total = total_,
                                 .seconds = std::chrono::duration<double>(now - start_).count()}));
  std::fflush(stderr);
  last_draw_ = now;
  drawn_ = true;
  bar_on_screen = true;
}

}  // namespace needle
