#include "needle/server/zip_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/file.h"

#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle {
namespace {

TEST(ZipWriterTest, ChecksumIsThatOfZip) { EXPECT_EQ(zip_crc32("123456789"), 0xcbf43926U); }

TEST(ZipWriterTest, AnotherProgramReadsIt) {
  std::string archive;
  ZipWriter zip([&](std::string_view bytes) {
    archive += bytes;
    return true;
  });
  EXPECT_TRUE(zip.add("a/one.txt", "hello"));
  EXPECT_TRUE(zip.add("a/empty", ""));
  EXPECT_TRUE(zip.add("a/größe.bin", std::string(100'000, '\x80')));
  EXPECT_TRUE(zip.finish());
  const test::TemporaryFolder folder;
  write_file_atomic(folder / "a.zip", archive);
  const auto tested = test::run_program(
      "/usr/bin/python3",
      {"-c",
       "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\n"
       "print(z.namelist(), z.read('a/one.txt'), len(z.read('a/größe.bin')))",
       (folder / "a.zip").string()});
  EXPECT_EQ(tested.out, "['a/one.txt', 'a/empty', 'a/größe.bin'] b'hello' 100000\n") << tested.err;
  archive[40] ^= 1;  // inside of hello
  write_file_atomic(folder / "b.zip", archive);
  EXPECT_NE(
      test::run_program("/usr/bin/python3", {"-m", "zipfile", "-e", (folder / "b.zip").string(),
                                             (folder / "out").string()})
          .exit_code,
      0);
}

TEST(ZipWriterTest, StopsWhenNobodyWantsTheRest) {
  int pieces = 0;
  ZipWriter zip([&](std::string_view) { return ++pieces < 2; });
  EXPECT_FALSE(zip.add("a", "b"));
  EXPECT_FALSE(zip.add("c", "d"));
  EXPECT_EQ(pieces, 2);
}

}  // namespace
}  // namespace needle
