#include "needle/core/file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr std::string_view kTemporaryMark = ".needle-tmp-";

[[noreturn]] void throw_file_error(const std::filesystem::path& path, std::string_view action,
                                   int error_number) {
  std::string_view advice;
  if (error_number == ENOSPC || error_number == EDQUOT) {
    advice = "; free some space and run again";
  } else if (error_number == EFBIG) {
    advice = "; the limit on file sizes (ulimit -f) is too low";
  }
  throw FileError(format("{}: cannot {}: {}{}", path, action,
                         std::generic_category().message(error_number), advice));
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) {
      ::close(value_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

int open_for_reading(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw_file_error(path, "open", errno);
  }
  return descriptor;
}

struct stat status_of(int descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    throw_file_error(path, "look at", errno);
  }
  if (S_ISDIR(status.st_mode)) {
    throw FileError(format("{}: expected a file, this is a folder", path));
  }
  return status;
}

// Bytes read into `buffer`; 0 at the end of the file.
std::size_t read_some(int descriptor, std::span<char> buffer, const std::filesystem::path& path) {
  for (;;) {
    const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
    if (count >= 0) {
      return static_cast<std::size_t>(count);
    }
    if (errno != EINTR) {
      throw_file_error(path, "read", errno);
    }
  }
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// A link stays a link: what it points to is replaced. A device, a pipe or a folder must not be.
std::filesystem::path replaceable(const std::filesystem::path& path,
                                  std::filesystem::file_type wanted) {
  std::error_code error;
  const std::filesystem::file_type type = std::filesystem::status(path, error).type();
  const bool absent = type == std::filesystem::file_type::not_found;
  if (!absent && type != wanted && type != std::filesystem::file_type::none) {
    throw FileError(
        format("{}: cannot replace this: it is not a {}", path,
               wanted == std::filesystem::file_type::regular ? "regular file" : "folder"));
  }
  if (!std::filesystem::is_symlink(path, error)) {
    return path;
  }
  const std::filesystem::path target = std::filesystem::weakly_canonical(path, error);
  return error ? path : target;
}

// Beside `path`, hidden, of this process alone; remove_leftovers() knows the mark.
std::filesystem::path temporary_name(const std::filesystem::path& path) {
  static std::atomic<std::uint64_t> counter{0};
  std::filesystem::path name = path.filename();
  if (name.empty() || name == "." || name == "..") {
    throw FileError(format("{}: expected a name to write to", path));
  }
  return folder_of(path) / format(".{}{}{}-{}", name, kTemporaryMark, ::getpid(), counter++);
}

void sync(const std::filesystem::path& path, int extra_flags) {
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | extra_flags));
  if (descriptor.get() < 0) {
    throw_file_error(path, "open", errno);
  }
  // Some file systems cannot sync a folder and say EINVAL; there is then nothing to wait for.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) {
    throw_file_error(path, "write to disk", errno);
  }
}

void sync_folder(const std::filesystem::path& path) { sync(path, O_DIRECTORY); }

void sync_tree(const std::filesystem::path& root) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.is_directory() && !entry.is_symlink()) {
      sync_folder(entry.path());
    } else if (entry.is_regular_file() && !entry.is_symlink()) {
      sync(entry.path(), 0);
    }
  }
  sync_folder(root);
}

// The folder at `from` comes to stand at `to`; what stood there comes to stand at `from`.
void exchange_folders(const std::filesystem::path& from, const std::filesystem::path& to) {
#ifdef RENAME_EXCHANGE
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    return;
  }
  if (errno != EINVAL && errno != ENOSYS) {
    throw_file_error(to, "replace", errno);
  }
#endif
  // Three renames where the file system cannot swap: `to` is missing for a moment.
  const std::filesystem::path aside = temporary_name(to);
  if (::rename(to.c_str(), aside.c_str()) != 0) {
    throw_file_error(to, "replace", errno);
  }
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int error_number = errno;
    ::rename(aside.c_str(), to.c_str());
    throw_file_error(to, "replace", error_number);
  }
  ::rename(aside.c_str(), from.c_str());
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  const Descriptor descriptor(open_for_reading(path));
  const struct stat status = status_of(descriptor.get(), path);
  std::string text;
  // A pipe has no size, and a file may grow while it is read: read until the end whatever the size
  // says.
  std::size_t capacity =
      S_ISREG(status.st_mode) ? static_cast<std::size_t>(status.st_size) + 1 : kBufferBytes;
  std::size_t size = 0;
  for (;;) {
    text.resize(capacity);
    const std::size_t count = read_some(descriptor.get(), std::span(text).subspan(size), path);
    size += count;
    if (count == 0) {
      text.resize(size);
      return text;
    }
    if (size == capacity) {
      capacity += std::max(capacity, kBufferBytes);
    }
  }
}

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFileWriter writer(path);
  writer.write(bytes);
  writer.commit();
}

AtomicFileWriter::AtomicFileWriter(std::filesystem::path path)
    : path_(replaceable(path, std::filesystem::file_type::regular)),
      temporary_path_(temporary_name(path_)) {
  descriptor_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw_file_error(path_, "create", errno);
  }
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0) {
    // Best effort: a file keeps the permissions it had.
    [[maybe_unused]] const int ignored = ::fchmod(descriptor_, status.st_mode & 07777);
  }
}

AtomicFileWriter::~AtomicFileWriter() { discard(); }

void AtomicFileWriter::discard() noexcept {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    descriptor_ = -1;
    ::unlink(temporary_path_.c_str());
  }
}

void AtomicFileWriter::write(std::string_view bytes) {
  NEEDLE_CHECK(descriptor_ >= 0, "{}: written to after commit() or an error", path_);
  offset_ += bytes.size();
  if (buffer_.size() + bytes.size() <= kBufferBytes) {
    buffer_.append(bytes);
    return;
  }
  flush(buffer_);
  buffer_.clear();
  if (bytes.size() >= kBufferBytes) {
    flush(bytes);
  } else {
    buffer_.append(bytes);
  }
}

void AtomicFileWriter::write(std::span<const std::byte> bytes) {
  write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void AtomicFileWriter::flush(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      const int error_number = errno;
      discard();
      throw_file_error(path_, "write", error_number);
    }
  }
}

void AtomicFileWriter::pad_to(std::uint64_t alignment) {
  NEEDLE_CHECK(alignment > 0, "alignment is 0");
  const std::uint64_t rest = offset_ % alignment;
  if (rest != 0) {
    write(std::string(static_cast<std::size_t>(alignment - rest), '\0'));
  }
}

void AtomicFileWriter::commit() {
  NEEDLE_CHECK(descriptor_ >= 0, "{}: committed twice or after an error", path_);
  flush(buffer_);
  buffer_.clear();
  if (::fsync(descriptor_) != 0 && errno != EINVAL) {
    const int error_number = errno;
    discard();
    throw_file_error(path_, "write to disk", error_number);
  }
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0 || ::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int error_number = errno;
    ::unlink(temporary_path_.c_str());
    throw_file_error(path_, "write", error_number);
  }
  sync_folder(folder_of(path_));
}

AtomicDirectory::AtomicDirectory(std::filesystem::path path)
    // "runs/step-10/" names the same folder as "runs/step-10".
    : path_(replaceable(path.has_filename() ? path : path.parent_path(),
                        std::filesystem::file_type::directory)),
      temporary_path_(temporary_name(path_)) {
  if (::mkdir(temporary_path_.c_str(), 0777) != 0) {
    throw_file_error(path_, "create", errno);
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (!committed_) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary_path_, ignored);
  }
}

void AtomicDirectory::commit() {
  NEEDLE_CHECK(!committed_, "{}: committed twice", path_);
  try {
    sync_tree(temporary_path_);
  } catch (const std::filesystem::filesystem_error& error) {
    throw FileError(format("{}: cannot write: {}", path_, error.what()));
  }
  std::error_code error;
  const bool replaces = std::filesystem::exists(path_, error);
  if (replaces) {
    exchange_folders(temporary_path_, path_);
  } else if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    throw_file_error(path_, "create", errno);
  }
  committed_ = true;
  sync_folder(folder_of(path_));
  if (replaces) {
    std::filesystem::remove_all(temporary_path_, error);  // the old one, now under our name
  }
}

void remove_leftovers(const std::filesystem::path& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> leftovers;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with('.') && name.find(kTemporaryMark) != std::string::npos) {
      leftovers.push_back(entry->path());
    }
  }
  for (const std::filesystem::path& leftover : leftovers) {
    std::filesystem::remove_all(leftover, error);
  }
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor descriptor(open_for_reading(path));
  const struct stat status = status_of(descriptor.get(), path);
  if (!S_ISREG(status.st_mode)) {
    throw FileError(format("{}: cannot map this: it is not a regular file", path));
  }
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) {
    return;  // mmap refuses an empty range
  }
  void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (address == MAP_FAILED) {
    throw_file_error(path, "map", errno);
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::filesystem::path needle_home() {
  const auto environment = [](const char* name) -> std::filesystem::path {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (const auto home = environment("NEEDLE_HOME"); !home.empty()) {
    return home;
  }
  if (const auto cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return cache / "needle";
  }
  if (const auto home = environment("HOME"); !home.empty()) {
    return home / ".cache" / "needle";
  }
  throw ConfigError("neither NEEDLE_HOME nor HOME is set: set NEEDLE_HOME to a folder for caches");
}

}  // namespace needle
