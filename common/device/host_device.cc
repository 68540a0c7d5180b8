#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/device/device.h"

namespace baton {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// From here on memory is mapped on its own.
constexpr size_t kMappedBytesMin = size_t{1} << 20;

class HostDevice final : public Device {
 public:
  explicit HostDevice(HostMemoryOptions options) : options_(options) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string name() const override { return "cpu"; }

  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override {
    // A zero-byte request still gets an address, so that data() is never null.
    const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
    std::byte* const data = rounded >= kMappedBytesMin ? Map(rounded) : FromHeap(rounded);
    if (data == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("the host has no ", bytes, " bytes free"));
    }
    return DeviceMemory(this, data, bytes);
  }

  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override { return Allocate(bytes); }

  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override {
    for (const std::span<const std::byte>& piece : from) {
      std::memcpy(to, piece.data(), piece.size());
      to += piece.size();
    }
    return absl::OkStatus();
  }
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override {
    for (const std::span<std::byte>& piece : to) {
      std::memcpy(piece.data(), from, piece.size());
      from += piece.size();
    }
    return absl::OkStatus();
  }

 private:
  static std::byte* FromHeap(size_t rounded) {
    void* data = std::aligned_alloc(kAlignment, rounded);
    if (data != nullptr) std::memset(data, 0, rounded);
    return static_cast<std::byte*>(data);
  }

  // Pages are zeros that nobody has touched: each comes to be near the thread that first writes to
  // it. Huge ones save most of the address translations, which cost a quarter of the bandwidth when
  // weights are streamed.
  std::byte* Map(size_t rounded) const {
    const size_t mapped = rounded + kHugePage;  // Room to begin at a huge page.
    void* const whole =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) return nullptr;
    std::byte* const begin = static_cast<std::byte*>(whole);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    const size_t kept = RoundToPages(rounded);
    if (before > 0) munmap(begin, before);
    munmap(begin + before + kept, mapped - before - kept);
    // Advice: without it all works, more slowly.
    if (options_.huge_pages) madvise(begin + before, kept, MADV_HUGEPAGE);
    return begin + before;
  }

  void Free(std::byte* data, size_t bytes, bool /*pinned*/) override {
    const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
    if (rounded >= kMappedBytesMin) {
      munmap(data, RoundToPages(rounded));
    } else {
      std::free(data);
    }
  }

  static size_t RoundToPages(size_t bytes) {
    static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  const HostMemoryOptions options_;
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice(HostMemoryOptions options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace baton
