#include "needle/train/host_memory.h"

#include <limits>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace needle {

void keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kGrowBytes = 64 << 20;  // the heap grows in steps of this size
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, kGrowBytes);
#endif
}

}  // namespace needle
