// The published weights: found in the cache folder, or downloaded into it.
//
//   NEEDLE_HOME            the cache folder (see needle_home); weights lie in released/
//   NEEDLE_WEIGHTS_URL     where needle.pkl comes from; default: the published one
//   NEEDLE_TOKENIZER_URL   its tokenizer; default: tokenizer/needle.model beside the weights
//   NEEDLE_WEIGHTS_SHA256  what needle.pkl must hash to; without it URL.sha256 is asked for
//   HF_HUB_OFFLINE         1: never touch the network
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace needle {

struct ReleasedWeights {
  std::filesystem::path weights;    // needle.pkl
  std::filesystem::path tokenizer;  // needle.model; empty if there is none yet
};

// needle_home()/released.
std::filesystem::path released_weights_folder();

// What lies in `folder`; nothing without a needle.pkl.
std::optional<ReleasedWeights> find_released_weights(const std::filesystem::path& folder);

// True when HF_HUB_OFFLINE is set to 1, true, yes or on.
bool is_offline();

// NEEDLE_WEIGHTS_URL or the published address.
std::string released_weights_url();

struct DownloadOptions {
  std::string url;  // http:// or https://; redirects are followed
  std::filesystem::path destination;
  std::string sha256;  // lower-case hex; empty: not checked
  std::function<void(std::uint64_t done, std::uint64_t total)> on_progress;  // total 0: unknown
  int attempts = 4;               // tries in all when the connection breaks
  double first_wait_seconds = 1;  // before the second try; doubled each time
};

// Downloads through `destination`.part: a broken transfer goes on where it stopped, also in a later
// process, unless the server's file has changed since (ETag). Nothing stands at `destination` until
// all bytes are there and the hash fits. Throws Error naming the URL: offline, refused, not found,
// connection broken, wrong hash (the partial file is removed).
void download_file(const DownloadOptions& options);

struct FetchReport {
  ReleasedWeights files;
  bool verified = false;  // a SHA-256 was known and fits
};

// Downloads weights and tokenizer into `folder`. `title` is what a progress display shows.
FetchReport download_released_weights(
    const std::filesystem::path& folder,
    const std::function<void(std::string_view title, std::uint64_t done, std::uint64_t total)>&
        on_progress = {});

}  // namespace needle
