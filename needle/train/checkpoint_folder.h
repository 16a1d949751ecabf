// The checkpoints of a run on disk: written whole or not at all, rotated, found again after a
// crash.
//
//   RUN/checkpoints/step-000120/  what the trainer writes, and manifest.json: its sizes and SHA-256
//
//   RUN/checkpoints/latest        text: "step-000120"
//
//   RUN/checkpoints/best          text: the folder with the best validation score, if any
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace needle {

struct CheckpointRef {
  std::int64_t step = 0;
  std::filesystem::path path;
};

// What is wrong with a checkpoint; empty if every file has the size and hash of its manifest. Does
// not throw.
std::string checkpoint_damage(const std::filesystem::path& checkpoint);

// Writes manifest.json for the files in `folder`.
void write_manifest(const std::filesystem::path& folder);

// One run's checkpoints. Holds no state but its settings, so several objects may look at one run;
// one may write.
class CheckpointFolder {
 public:
  // `keep`: how many of the newest stay, at least 1; the best one stays besides.
  explicit CheckpointFolder(const std::filesystem::path& run_folder, std::int64_t keep = 3);

  // `write_files` fills a temporary folder, which then gets its manifest and its name; `latest`
  // follows and old checkpoints go. On any failure (full disk) what was there before is untouched,
  // and the error passes on.
  std::filesystem::path save(
      std::int64_t step,
      const std::function<void(const std::filesystem::path& folder)>& write_files);
  void mark_best(std::int64_t step);

  std::filesystem::path path_of(std::int64_t step) const;
  std::vector<CheckpointRef> list() const;  // by step, oldest first; damaged ones too
  std::optional<CheckpointRef> best() const;

  // The newest checkpoint without damage, none after `last_step` looked at. What is wrong with
  // newer ones goes to `warnings`. Nothing if there is none; throws FormatError if there are some
  // and all are damaged.
  std::optional<CheckpointRef> newest_valid(
      std::vector<std::string>& warnings,
      std::int64_t last_step = std::numeric_limits<std::int64_t>::max()) const;

  // Removes the checkpoints after that of `step`, the newest first; `latest` then names it. What
  // cannot be removed is a FileError.
  void remove_after(std::int64_t step);

 private:
  std::optional<CheckpointRef> marked(const char* marker) const;
  void rotate();
  std::filesystem::path folder_;
  std::int64_t keep_;
};

// What a user means by a path: a checkpoint itself, or a run, whose best checkpoint is taken, else
// its newest valid one. Throws FileError if it is neither, saying what was looked for.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path);

}  // namespace needle
