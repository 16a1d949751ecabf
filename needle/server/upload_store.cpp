#include "needle/server/upload_store.h"

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "needle/server/api_error.h"

namespace needle {
namespace {

constexpr std::string_view kPrefix = "upload-";

ApiError write_error(const std::filesystem::path& path, int reason) {
  return ApiError(reason == ENOSPC || reason == EDQUOT ? 507 : 500,
                  format("{}: {}", path, std::strerror(reason)),
                  {.code = reason == ENOSPC || reason == EDQUOT ? "disk_full" : ""});
}

// All of it, or 0 < errno.
int append(const std::filesystem::path& path, std::string_view bytes) {
  const int file =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) {
    return errno;
  }
  int reason = 0;
  while (reason == 0 && !bytes.empty()) {
    const ssize_t count = ::write(file, bytes.data(), bytes.size());
    if (count >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      reason = errno;
    }
  }
  ::close(file);
  return reason;
}

}  // namespace

UploadStore::UploadStore(std::filesystem::path folder, UploadLimits limits)
    : folder_(std::move(folder)), limits_(limits) {}

UploadStore::~UploadStore() {
  std::error_code error;
  for (const auto& [id, upload] : uploads_) {
    std::filesystem::remove(upload.path, error);
  }
}

void UploadStore::give_up_idle() {
  const auto now = std::chrono::steady_clock::now();
  std::erase_if(uploads_, [&](const auto& item) {
    const bool idle = now - item.second.used > limits_.idle;
    std::error_code error;
    if (idle) {
      std::filesystem::remove(item.second.path, error);
    }
    return idle;
  });
}

void UploadStore::check_size(std::string_view kind, std::uint64_t bytes) const {
  const std::uint64_t most = kind == "model" ? limits_.model_bytes : limits_.rows_bytes;
  if (bytes == 0) {
    throw ApiError(400, "the file is empty", {.param = "bytes"});
  }
  if (bytes > most) {
    throw ApiError(413, format("the file: {} bytes, at most {} are allowed", bytes, most),
                   {.code = "file_too_large", .param = "bytes"});
  }
}

std::string UploadStore::begin(std::string_view kind, std::uint64_t bytes) {
  check_size(kind, bytes);
  const std::lock_guard lock(mutex_);
  give_up_idle();
  if (uploads_.size() >= limits_.at_once) {
    ApiError error(429, format("{} uploads are under way already", uploads_.size()),
                   {.code = "too_many_uploads"});
    error.retry_after_seconds = 5;
    throw error;
  }
  if (begun_ == 0) {
    std::filesystem::create_directories(folder_);
    for (const auto& item : std::filesystem::directory_iterator(folder_)) {
      if (item.path().filename().string().starts_with(kPrefix)) {
        std::error_code error;
        std::filesystem::remove(item.path(), error);
      }
    }
  }
  const std::string id = format("{}-{}", ++begun_, std::random_device()());
  uploads_[id] = {.kind = std::string(kind),
                  .bytes = bytes,
                  .path = folder_ / format("{}{}", kPrefix, id),
                  .used = std::chrono::steady_clock::now()};
  return id;
}

UploadStore::Upload& UploadStore::find(const std::string& id) {
  const auto found = uploads_.find(id);
  if (found == uploads_.end()) {
    throw ApiError(404, "no such upload, or it was given up; begin again",
                   {.code = "upload_not_found"});
  }
  return found->second;
}

std::uint64_t UploadStore::add(const std::string& id, std::uint64_t offset,
                               std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  Upload& upload = find(id);
  if (offset != upload.received) {
    throw ApiError(
        409, format("expected the piece at byte {}, got the one at {}", upload.received, offset),
        {.code = "wrong_offset"});
  }
  if (bytes.size() > upload.bytes - upload.received) {
    throw ApiError(413, format("more than the {} bytes announced", upload.bytes),
                   {.code = "file_too_large"});
  }
  if (const int reason = append(upload.path, bytes); reason != 0) {
    const auto path = upload.path;
    std::error_code error;
    std::filesystem::remove(path, error);  // half a piece may be there: begin again
    uploads_.erase(id);
    throw write_error(path, reason);
  }
  upload.received += bytes.size();
  upload.used = std::chrono::steady_clock::now();
  return upload.received;
}

std::filesystem::path UploadStore::take(const std::string& id, std::string_view kind) {
  const std::lock_guard lock(mutex_);
  const Upload& upload = find(id);
  if (upload.kind != kind) {
    throw ApiError(409, format("this upload is of the kind {}, not {}", upload.kind, kind));
  }
  if (upload.received != upload.bytes) {
    throw ApiError(409, format("{} of {} bytes have come", upload.received, upload.bytes),
                   {.code = "upload_incomplete"});
  }
  auto path = upload.path;
  uploads_.erase(id);
  return path;
}

}  // namespace needle
