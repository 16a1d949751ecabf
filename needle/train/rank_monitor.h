// Watches the other ranks of a run: a thread of each rank tells the store every second that it is
// alive and how far it has come, and looks at what the others told. Whom to blame when a rank is
// killed, hangs or is slow comes from here. Times are steady and each rank's own: the clocks of two
// hosts are never compared, and setting one changes nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

// What ranks tell each other through; the process group's store implements it. Calls may block for
// as long as the store's own timeout and throw what they like.
class RankBoard {
 public:
  virtual ~RankBoard() = default;
  virtual void post(const std::string& key, const std::string& text) = 0;
  // The texts under `keys`; empty where nothing was posted yet.
  virtual std::vector<std::string> read(const std::vector<std::string>& keys) = 0;
};

struct RankMonitorOptions {
  double beat_s = 1.0;       // between two signs of life
  double silence_s = 30.0;   // without one for so long: the rank is dead or frozen
  double progress_s = 1800;  // with signs of life, but no collective for so long: it hangs
  double slow_factor = 1.5;  // a step of its own work above so many medians is slow ...
  int slow_beats = 10;       // ... if it was so at so many beats in a row
  std::string board_owner;   // who serves the board; empty: rank 0
  std::function<void(const std::string& text)> on_slow;  // from the monitor's thread
};

// Thread-safe.
class RankMonitor {
 public:
  RankMonitor(std::unique_ptr<RankBoard> board, std::int64_t rank, std::int64_t world,
              const RankMonitorOptions& options);
  ~RankMonitor();  // stops the thread; one that waits for a frozen board is left behind
  RankMonitor(const RankMonitor&) = delete;
  RankMonitor& operator=(const RankMonitor&) = delete;

  void passed_collective();                     // this rank has started another one
  void worked(double step_seconds);             // own work of a step, waiting for others left out
  void post_failure(std::string_view message);  // tells the others why this rank ends; at once
  void post_end();                              // this rank is through: its silence is no failure

  bool others_ended(double patience_s) const;  // waits for it, `patience_s` at most

  // Why the run cannot go on, naming the rank: "rank 1 (pid 71 on host a) ...". Nothing as long as
  // all is well.
  std::optional<std::string> failure() const;
  // The same, asked after a collective failed: waits until there is an answer, `patience_s` at
  // most.
  std::optional<std::string> diagnose(double patience_s) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace needle
