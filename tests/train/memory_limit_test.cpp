#include "needle/train/memory_limit.h"

#include <cstdlib>
#include <limits>

#include <gtest/gtest.h>

#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

void write_group(const fs::path& folder,
                 const std::vector<std::pair<const char*, const char*>>& files) {
  fs::create_directories(folder);
  for (const auto& [name, text] : files) {
    write_file_atomic(folder / name, text);
  }
}

TEST(MemoryLimitTest, TheTightestControlGroupCounts) {
  const test::TemporaryFolder root;
  write_group(root / "jobs", {{"memory.max", "1000000\n"},
                              {"memory.current", "700000\n"},
                              {"memory.stat", "anon 5\ninactive_file 50000\n"}});
  write_group(root / "jobs/one", {{"memory.max", "max\n"}, {"memory.current", "1\n"}});
  EXPECT_EQ(cgroup_headroom("0::/jobs/one\n", root.path()).bytes, 350000);
  write_group(root / "jobs/one", {{"memory.max", "600000\n"}, {"memory.current", "599000\n"}});
  EXPECT_EQ(cgroup_headroom("0::/jobs/one\n", root.path()).bytes, 1000);
  // In a container the path is the host's: what is mounted is the group.
  write_group(root.path(), {{"memory.max", "900\n"}, {"memory.current", "1000\n"}});
  EXPECT_EQ(cgroup_headroom("0::/elsewhere\n", root.path()).bytes, 0);
}

TEST(MemoryLimitTest, VersionOneHasAControllerOfItsOwn) {
  const test::TemporaryFolder root;
  const std::string self = "11:cpu,cpuacct:/other\n5:memory:/box\n0::/\n";
  write_group(root / "memory/box", {{"memory.limit_in_bytes", "5000\n"},
                                    {"memory.usage_in_bytes", "3000\n"},
                                    {"memory.stat", "inactive_file 1\ntotal_inactive_file 20\n"}});
  EXPECT_EQ(cgroup_headroom(self, root.path()).bytes, 2020);
  write_group(root / "memory/box", {{"memory.limit_in_bytes", "9223372036854771712\n"}});
  EXPECT_EQ(cgroup_headroom(self, root.path()).bytes, std::numeric_limits<std::int64_t>::max());
}

TEST(MemoryLimitTest, SomethingIsFreeOnThisMachine) {
  const MemoryHeadroom free = memory_headroom();
  EXPECT_GT(free.bytes, 1 << 20);
  EXPECT_FALSE(free.source.empty());
}

TEST(MemoryLimitTest, WithinTheScopeAllocationsFailInsteadOfBeingKilled) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator ends the process";
#endif
  constexpr std::size_t kLarge = std::size_t{1} << 30;
  const auto fits = [] {
    void* block = std::malloc(kLarge);
    std::free(block);
    return block != nullptr;
  };
  ASSERT_TRUE(fits());
  {
    const AddressSpaceScope scope(kLarge / 4);
    EXPECT_FALSE(fits());
    const AddressSpaceScope wider(4 * kLarge);  // a wider one inside changes nothing
    EXPECT_FALSE(fits());
  }
  EXPECT_TRUE(fits());
}

}  // namespace
}  // namespace needle
