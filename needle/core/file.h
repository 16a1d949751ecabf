// Files: whole reads, memory maps, and writes that never leave half a file behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace needle {

// Throws FileError naming the path and the system's reason.
std::string read_file(const std::filesystem::path& path);

// Writes a temporary name in the same folder, fsyncs it, renames it over `path`, fsyncs the folder.
// On any failure the temporary file is removed, what stood at `path` is untouched, and FileError is
// thrown. A symbolic link keeps pointing where it did; a device or a folder at `path` is refused.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

// The same for output written piece by piece: nothing stands at `path` until commit() returns.
// Not thread-safe. The destructor of an uncommitted writer removes the temporary file.
class AtomicFileWriter {
 public:
  explicit AtomicFileWriter(std::filesystem::path path);
  ~AtomicFileWriter();
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;

  void write(std::string_view bytes);
  void write(std::span<const std::byte> bytes);
  std::uint64_t offset() const { return offset_; }  // bytes written so far
  void pad_to(std::uint64_t alignment);             // zero bytes up to a multiple of `alignment`
  void commit();

 private:
  void flush(std::string_view bytes);
  void discard() noexcept;

  std::filesystem::path path_;
  std::filesystem::path temporary_path_;
  std::string buffer_;
  std::uint64_t offset_ = 0;
  int descriptor_ = -1;
};

// A folder made complete under a temporary name and renamed into place: a checkpoint exists whole
// or not at all. commit() waits until every file inside is on disk. An existing `path` is replaced,
// by swapping the two names where the file system can. The destructor of an uncommitted one removes
// the temporary folder.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& temporary_path() const { return temporary_path_; }
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_path_;
  bool committed_ = false;
};

// Removes what killed writers left in `folder`. Call it only where no other process is writing.
// Never throws.
void remove_leftovers(const std::filesystem::path& folder);

// A read-only memory map. Movable; the bytes stay valid as long as the object lives. Reading from
// several threads is safe. An empty file maps to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Lower-case hexadecimal SHA-256.
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::string_view bytes);
std::string sha256_file(const std::filesystem::path& path);

// CRC-32C (Castagnoli), as in TensorBoard records and the sections of a weights file. To go on with
// more bytes, pass the result so far as `seed`.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);

// $NEEDLE_HOME, or $XDG_CACHE_HOME/needle, or ~/.cache/needle. Not created. Throws ConfigError if
// none is set.
std::filesystem::path needle_home();

}  // namespace needle
