#include "needle/core/file.h"

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using test::TemporaryFolder;

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

// Until the end of the scope no file can grow beyond `bytes`: what a full disk does to a writer.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

class EnvironmentVariable {
 public:
  EnvironmentVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) {
      before_ = before;
      was_set_ = true;
    }
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~EnvironmentVariable() { was_set_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }
  EnvironmentVariable(const EnvironmentVariable&) = delete;
  EnvironmentVariable& operator=(const EnvironmentVariable&) = delete;

 private:
  const char* name_;
  std::string before_;
  bool was_set_ = false;
};

TEST(FileTest, ReadsWhatWasWritten) {
  const TemporaryFolder folder;
  for (const std::size_t size :
       {0u, 1u, 4096u, (1u << 20) - 1, 1u << 20, (1u << 20) + 1, 3'000'000u}) {
    std::string bytes(size, '\0');
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = static_cast<char>(i * 31 + i / 251);
    }
    write_file_atomic(folder / "file", bytes);
    EXPECT_EQ(read_file(folder / "file"), bytes);
    const MappedFile map(folder / "file");
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()),
              bytes);
  }
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("file"));
}

TEST(FileTest, ReadsAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "piped", 5), 5);
  close(ends[1]);
  EXPECT_EQ(read_file("/dev/fd/" + std::to_string(ends[0])), "piped");
  close(ends[0]);
}

TEST(FileTest, ErrorsNamePathAndReason) {
  const TemporaryFolder folder;
  for (const auto& path : {folder / "absent", folder.path()}) {
    try {
      read_file(path);
      FAIL() << "read " << path;
    } catch (const FileError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(path.string()));
    }
    EXPECT_THROW(MappedFile{path}, FileError);
  }
  EXPECT_THROW(write_file_atomic(folder / "absent" / "file", "x"), FileError);
  EXPECT_THROW(write_file_atomic(folder.path(), "x"), FileError);
  EXPECT_THROW(write_file_atomic("/dev/null", "x"), FileError);
  EXPECT_THROW(MappedFile("/dev/null"), FileError);
  EXPECT_THROW(write_file_atomic("", "x"), FileError);
}

TEST(AtomicFileWriterTest, NothingStandsThereBeforeCommit) {
  const TemporaryFolder folder;
  {
    AtomicFileWriter writer(folder / "file");
    writer.write("abc");
    EXPECT_EQ(writer.offset(), 3u);
    writer.pad_to(8);
    EXPECT_EQ(writer.offset(), 8u);
    writer.pad_to(8);
    EXPECT_EQ(writer.offset(), 8u);
    writer.write(std::string(3 << 20, 'x'));
    EXPECT_FALSE(std::filesystem::exists(folder / "file"));
    writer.commit();
    EXPECT_THROW(writer.write("more"), Error);
    EXPECT_THROW(writer.commit(), Error);
  }
  EXPECT_EQ(read_file(folder / "file"),
            std::string("abc\0\0\0\0\0", 8) + std::string(3 << 20, 'x'));
  { AtomicFileWriter(folder / "other").write("abc"); }
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("file"));
}

TEST(AtomicFileWriterTest, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "file", "old");
  {
    const FileSizeLimit limit(100'000);
    for (const std::size_t size : {200'000u, 5'000'000u}) {  // fails in commit(), in write()
      try {
        write_file_atomic(folder / "file", std::string(size, 'x'));
        FAIL() << "wrote " << size;
      } catch (const FileError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr((folder / "file").string()));
        EXPECT_THAT(error.what(), testing::HasSubstr("limit"));
      }
    }
  }
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("file"));
}

TEST(AtomicFileWriterTest, AKilledWriterLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "file", "old");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicFileWriter writer(folder / "file");
    writer.write(std::string(3 << 20, 'x'));
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(names_in(folder.path()).size(), 2u);  // what the killed one left
  remove_leftovers(folder.path());
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("file"));
  remove_leftovers(folder / "absent");
}

TEST(AtomicFileWriterTest, KeepsPermissionsAndLinks) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "file", "old");
  ASSERT_EQ(chmod((folder / "file").c_str(), 0600), 0);
  std::filesystem::create_symlink("file", folder / "link");
  write_file_atomic(folder / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "file"), "new");
  struct stat status {};
  ASSERT_EQ(stat((folder / "file").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST(AtomicDirectoryTest, ExistsWholeOrNotAtAll) {
  const TemporaryFolder folder;
  {
    AtomicDirectory directory(folder / "step-1");
    write_file_atomic(directory.temporary_path() / "a", "1");
    std::filesystem::create_directories(directory.temporary_path() / "deep" / "er");
    write_file_atomic(directory.temporary_path() / "deep" / "er" / "b", "2");
    EXPECT_FALSE(std::filesystem::exists(folder / "step-1"));
    directory.commit();
  }
  EXPECT_EQ(read_file(folder / "step-1" / "deep" / "er" / "b"), "2");
  {
    AtomicDirectory abandoned(folder / "step-2");
    write_file_atomic(abandoned.temporary_path() / "a", "1");
  }
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("step-1"));
}

TEST(AtomicDirectoryTest, ReplacesAnOldOneWhole) {
  const TemporaryFolder folder;
  for (const char* name : {"first", "second", "third"}) {
    AtomicDirectory directory(folder / "step-1" / "");  // the same with a slash at the end
    write_file_atomic(directory.temporary_path() / name, name);
    directory.commit();
  }
  EXPECT_THAT(names_in(folder / "step-1"), testing::ElementsAre("third"));
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("step-1"));
}

TEST(AtomicDirectoryTest, DoesNotReplaceAFile) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "file", "old");
  EXPECT_THROW(AtomicDirectory{folder / "file"}, FileError);
  EXPECT_THROW(AtomicDirectory{folder / "absent" / "step"}, FileError);
  EXPECT_EQ(read_file(folder / "file"), "old");
}

TEST(MappedFileTest, MovesItsBytes) {
  const TemporaryFolder folder;
  write_file_atomic(folder / "a", "aaa");
  write_file_atomic(folder / "b", "bb");
  MappedFile a(folder / "a");
  const std::byte* const place = a.bytes().data();
  MappedFile moved(std::move(a));
  EXPECT_EQ(moved.bytes().data(), place);
  moved = MappedFile(folder / "b");
  EXPECT_EQ(moved.bytes().size(), 2u);
  EXPECT_EQ(moved.path(), folder / "b");
}

TEST(NeedleHomeTest, TakesTheFirstThatIsSet) {
  const EnvironmentVariable home("HOME", "/home/someone");
  const EnvironmentVariable cache("XDG_CACHE_HOME", nullptr);
  const EnvironmentVariable own("NEEDLE_HOME", nullptr);
  EXPECT_EQ(needle_home(), "/home/someone/.cache/needle");
  {
    const EnvironmentVariable set("XDG_CACHE_HOME", "/cache");
    EXPECT_EQ(needle_home(), "/cache/needle");
    const EnvironmentVariable own_set("NEEDLE_HOME", "/own");
    EXPECT_EQ(needle_home(), "/own");
  }
  const EnvironmentVariable empty("HOME", "");
  EXPECT_THROW(needle_home(), ConfigError);
}

}  // namespace
}  // namespace needle
