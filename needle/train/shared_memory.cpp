#include "needle/train/shared_memory.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <random>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "needle/core/error.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

// The futex is one of the memory, not of this process.
long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout,
                 nullptr, 0);
}

bool reached(std::uint32_t value, std::uint32_t target) {
  return static_cast<std::int32_t>(value - target) >= 0;
}

void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long looking is cheaper than sleep and wake-up. A single core must be given away.
std::chrono::microseconds looking_time() {
  static const bool several = std::thread::hardware_concurrency() > 1;
  return std::chrono::microseconds(several ? 20 : 0);
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) {
      close(value_);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

std::string failed(std::string_view call) { return format("{}: {}", call, std::strerror(errno)); }

// A name that no other memory has: it proves that the right descriptor was found.
std::string fresh_name() {
  std::random_device random;
  const auto word = [&] { return static_cast<std::uint64_t>(random()); };
  return format("needle-{:016x}{:016x}", word() << 32 | word(), word() << 32 | word());
}

// All pages at once: what is missing is an error here, not a SIGBUS at the first touch. Sealed, so
// that nobody can take them away.
std::string reserve(int descriptor, std::size_t bytes) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < bytes) {  // would be a signal
    return format("{} bytes are above the limit for files (ulimit -f), {}", bytes, limit.rlim_cur);
  }
  if (ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
    return failed("ftruncate");
  }
  int rc = 0;
  while ((rc = fallocate(descriptor, 0, 0, static_cast<off_t>(bytes))) != 0 && errno == EINTR) {
  }
  if (rc != 0) {
    return format("{:.1f} MB: {}", static_cast<double>(bytes) / 1e6, failed("fallocate"));
  }
  if (fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return failed("fcntl(F_ADD_SEALS)");
  }
  return {};
}

std::string map_descriptor(int descriptor, std::size_t bytes, std::span<std::byte>& part) {
  void* const address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) {
    return failed("mmap");
  }
  madvise(address, bytes, MADV_HUGEPAGE);  // where the system shares huge pages
  madvise(address, bytes, MADV_DONTFORK);  // a program that this one starts has no part in it
  part = {static_cast<std::byte*>(address), bytes};
  return {};
}

// What a process posts: "PID DESCRIPTOR BYTES NAME" or "-why it cannot".
struct Offer {
  pid_t pid = 0;
  int descriptor = -1;
  std::size_t bytes = 0;
  std::string name;
};

std::string map_offer(const Offer& offer, std::span<std::byte>& part) {
  const std::string path = format("/proc/{}/fd/{}", offer.pid, offer.descriptor);
  std::array<char, 256> target{};
  if (readlink(path.c_str(), target.data(), target.size() - 1) < 0) {
    return failed(path);
  }
  // On another host, or where process ids are others, something else may be there.
  if (std::string_view(target.data()) != format("/memfd:{} (deleted)", offer.name)) {
    return format("{} is not the memory of the other rank: another host or container", path);
  }
  const Descriptor descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct stat info {};
  if (descriptor.get() < 0 || fstat(descriptor.get(), &info) != 0) {
    return failed(path);
  }
  if (static_cast<std::size_t>(info.st_size) != offer.bytes) {
    return format("{} has {} bytes, not {}", path, info.st_size, offer.bytes);
  }
  return map_descriptor(descriptor.get(), offer.bytes, part);
}

bool is_refusal(const std::string& text) { return text.starts_with('-'); }

}  // namespace

void SharedCount::raise() {
  value.fetch_add(1);
  if (sleepers.load() > 0) {
    futex(value, FUTEX_WAKE, INT_MAX, nullptr);
  }
}

bool SharedCount::has_reached(std::uint32_t target) const { return reached(value.load(), target); }

bool SharedCount::wait_for(std::uint32_t target, std::chrono::milliseconds patience) {
  const auto start = Clock::now();
  do {
    for (int i = 0; i < 16; ++i) {
      if (has_reached(target)) {
        return true;
      }
      pause_core();
    }
  } while (Clock::now() - start < looking_time());
  ++sleepers;
  std::uint32_t now = value.load();
  while (!reached(now, target)) {
    const auto left =
        std::chrono::duration_cast<std::chrono::nanoseconds>(patience - (Clock::now() - start));
    if (left.count() <= 0) {
      break;
    }
    const timespec timeout{.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
                           .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
    futex(value, FUTEX_WAIT, now, &timeout);
    now = value.load();
  }
  --sleepers;
  return reached(now, target);
}

std::shared_ptr<SharedMemory> SharedMemory::map(const SharedMemoryRequest& request,
                                                const SharedNotices& notices, std::string& reason) {
  const auto key = [&](std::string_view what, std::int64_t rank) {
    return format("{}/{}/{}", request.key, what, rank);
  };
  // The first refusal in the order of ranks, so that all tell the same.
  const auto refused = [&](const std::vector<std::string>& texts) {
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      if (is_refusal(texts[rank])) {
        reason = format("rank {}: {}", rank, texts[rank].substr(1));
        return true;
      }
    }
    return false;
  };
  const auto exchange = [&](std::string_view what, const std::string& own) {
    notices.post(key(what, request.rank), own);
    std::vector<std::string> texts;
    for (std::int64_t rank = 0; rank < request.world; ++rank) {
      texts.push_back(notices.await(key(what, rank)));
    }
    return texts;
  };

  const std::size_t bytes = std::max<std::size_t>(request.bytes, 1);
  const std::string name = fresh_name();
  std::string trouble = request.refusal;
  const Descriptor own(trouble.empty() ? memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING)
                                       : -1);
  if (trouble.empty()) {
    trouble = own.get() < 0 ? failed("memfd_create") : reserve(own.get(), bytes);
  }
  const auto offers =
      exchange("memory", trouble.empty() ? format("{} {} {} {}", getpid(), own.get(), bytes, name)
                                         : "-" + trouble);
  if (refused(offers)) {
    return nullptr;
  }
  std::shared_ptr<SharedMemory> memory(new SharedMemory());
  memory->parts_.resize(static_cast<std::size_t>(request.world));
  for (std::size_t rank = 0; rank < offers.size() && trouble.empty(); ++rank) {
    auto& part = memory->parts_[rank];
    if (static_cast<std::int64_t>(rank) == request.rank) {
      trouble = map_descriptor(own.get(), bytes, part);
      continue;
    }
    Offer offer;
    std::istringstream(offers[rank]) >> offer.pid >> offer.descriptor >> offer.bytes >> offer.name;
    trouble = map_offer(offer, part);
  }
  // Nobody closes a descriptor before all have mapped it.
  if (refused(exchange("mapped", trouble.empty() ? "yes" : "-" + trouble))) {
    return nullptr;
  }
  return memory;
}

SharedMemory::~SharedMemory() {
  for (const std::span<std::byte> part : parts_) {
    if (!part.empty()) {
      munmap(part.data(), part.size());
    }
  }
}

}  // namespace needle
