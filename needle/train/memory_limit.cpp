#include "needle/train/memory_limit.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

#include <sys/resource.h>
#include <unistd.h>

namespace needle {
namespace {

namespace fs = std::filesystem;
constexpr auto kUnlimited = std::numeric_limits<std::int64_t>::max();

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// "max", an absent file and the kernel's huge default all mean no limit.
std::int64_t bytes_in(const fs::path& path) {
  const std::string text = text_of(path);
  const auto value = std::strtoull(text.c_str(), nullptr, 10);
  const bool number = !text.empty() && text.front() >= '0' && text.front() <= '9';
  return number && value < static_cast<unsigned long long>(kUnlimited) / 2
             ? static_cast<std::int64_t>(value)
             : kUnlimited;
}

// The number behind `key` at the start of a line; 0 if there is none.
std::int64_t number_after(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key)) {
      return std::atoll(line.c_str() + key.size());
    }
  }
  return 0;
}

struct GroupFiles {
  const char* limit;
  const char* usage;
  const char* inactive;  // in memory.stat: cache that goes when it is needed
};
constexpr GroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes",
                               "total_inactive_file "};
constexpr GroupFiles kVersion2{"memory.max", "memory.current", "inactive_file "};

std::int64_t headroom_in(const fs::path& group, const GroupFiles& files) {
  const std::int64_t limit = bytes_in(group / files.limit);
  const std::int64_t usage = bytes_in(group / files.usage);
  if (limit == kUnlimited || usage == kUnlimited) {
    return kUnlimited;
  }
  const std::int64_t cache = number_after(text_of(group / "memory.stat"), files.inactive);
  return std::max<std::int64_t>(0, limit - usage + cache);
}

// The group and its parents. In a container the path may be the host's: the mount itself counts.
std::int64_t headroom_of(const fs::path& root, std::string_view path, const GroupFiles& files) {
  std::int64_t least = headroom_in(root, files);
  fs::path group = root;
  for (const fs::path& part : fs::path(path).relative_path()) {
    group /= part;
    least = std::min(least, headroom_in(group, files));
  }
  return least;
}

std::int64_t address_space_in_use() {
  std::int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

}  // namespace

MemoryHeadroom cgroup_headroom(std::string_view self, const fs::path& root) {
  std::int64_t least = kUnlimited;
  std::istringstream lines{std::string(self)};
  for (std::string line; std::getline(lines, line);) {  // "0::/a/b", "5:memory:/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      least = std::min(least, headroom_of(root, path, kVersion2));
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, headroom_of(root / "memory", path, kVersion1));
    }
  }
  return {.bytes = least, .source = "control group"};
}

MemoryHeadroom memory_headroom() {
  MemoryHeadroom least = cgroup_headroom(text_of("/proc/self/cgroup"), "/sys/fs/cgroup");
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const std::int64_t bytes = std::max<std::int64_t>(
        0, static_cast<std::int64_t>(limit.rlim_cur) - address_space_in_use());
    if (bytes < least.bytes) {
      least = {.bytes = bytes, .source = "RLIMIT_AS"};
    }
  }
  if (const std::int64_t kib = number_after(text_of("/proc/meminfo"), "MemAvailable:");
      kib > 0 && kib * 1024 < least.bytes) {
    least = {.bytes = kib * 1024, .source = "available memory"};
  }
  return least;
}

AddressSpaceScope::AddressSpaceScope(std::int64_t bytes) : before_(0) {
  rlimit limit{};
  if (bytes == kUnlimited || getrlimit(RLIMIT_AS, &limit) != 0) {
    return;
  }
  before_ = limit.rlim_cur;
  const auto wanted = static_cast<rlim_t>(address_space_in_use() + bytes);
  if (limit.rlim_cur == RLIM_INFINITY || wanted < limit.rlim_cur) {
    limit.rlim_cur = wanted;
    changed_ = setrlimit(RLIMIT_AS, &limit) == 0;
  }
}

AddressSpaceScope::~AddressSpaceScope() {
  rlimit limit{};
  if (changed_ && getrlimit(RLIMIT_AS, &limit) == 0) {
    limit.rlim_cur = before_;
    setrlimit(RLIMIT_AS, &limit);
  }
}

}  // namespace needle
