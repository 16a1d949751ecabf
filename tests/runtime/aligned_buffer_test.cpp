#include "needle/runtime/aligned_buffer.h"

#include <algorithm>
#include <cstdint>

#include <gtest/gtest.h>

namespace needle::runtime {
namespace {

constexpr std::size_t kLarge = 1 << 16;

// Buffers are kept until the end of the scope.
class KeepScope {
 public:
  KeepScope() { keep_buffers(); }
  ~KeepScope() { keep_buffers(false); }
};

std::uintptr_t address(const AlignedBuffer<int>& buffer) {
  return reinterpret_cast<std::uintptr_t>(buffer.data());
}

TEST(AlignedBufferTest, ZerosAreZerosInUsedMemoryToo) {
  const KeepScope keep;
  for (const std::size_t size : {std::size_t{1}, std::size_t{1000}, kLarge}) {
    for (int round = 0; round < 4; ++round) {
      AlignedBuffer<int> buffer(size);
      EXPECT_TRUE(std::ranges::all_of(buffer.span(), [](int value) { return value == 0; }));
      std::ranges::fill(buffer.span(), -1);
    }
  }
}

TEST(AlignedBufferTest, LargeOnesArePagesOfTheirOwnUnlessTheyAreKept) {
  const AlignedBuffer<int> pages(kLarge);
  EXPECT_EQ(address(pages) % 4096, 0U);
  const KeepScope keep;
  const AlignedBuffer<int> kept(kLarge);
  EXPECT_NE(address(kept) % 4096, 0U);  // the heap's own note stands before it
  EXPECT_EQ(address(kept) % 64, 0U);
}

TEST(AlignedBufferTest, GoesBackWhereItCameFrom) {
  AlignedBuffer<int> pages(kLarge);
  {
    const KeepScope keep;
    AlignedBuffer<int> kept(kLarge);
    kept.data()[kLarge - 1] = 7;
    std::swap(pages, kept);
    EXPECT_EQ(pages.data()[kLarge - 1], 7);
  }  // pages are unmapped while buffers are kept, heap is freed while they are not
  EXPECT_EQ(pages.data()[kLarge - 1], 7);
}

}  // namespace
}  // namespace needle::runtime
