// How much memory the process may still take, and a way to fail in time instead of being killed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace needle {

struct MemoryHeadroom {
  std::int64_t bytes = 0;  // that may still be taken; the largest std::int64_t: nobody says
  std::string source;      // "RLIMIT_AS", "control group", "available memory"
};

// The least of what the address-space limit, the control groups (v1 or v2, parents included; cache
// that can be given back counts as free) and the machine leave. Linux; elsewhere only RLIMIT_AS.
MemoryHeadroom memory_headroom();

// Of the control groups alone. `self`: the text of /proc/self/cgroup; `root`: where they are
// mounted.
MemoryHeadroom cgroup_headroom(std::string_view self, const std::filesystem::path& root);

// While it lives this process can take at most `bytes` more of address space (never more than
// before): allocations beyond fail, where the kernel would otherwise kill the process. Of the whole
// process, so one at a time, and no threads should start meanwhile.
class AddressSpaceScope {
 public:
  explicit AddressSpaceScope(std::int64_t bytes);
  ~AddressSpaceScope();
  AddressSpaceScope(const AddressSpaceScope&) = delete;
  AddressSpaceScope& operator=(const AddressSpaceScope&) = delete;

 private:
  std::uint64_t before_;
  bool changed_ = false;
};

}  // namespace needle
