#include "common/device/testing/guarded_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

size_t WholePages(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return std::max<size_t>(1, (bytes + page - 1) / page) * page;
}

struct Devices {
  absl::Mutex mutex;
  std::set<GuardedDevice*> all ABSL_GUARDED_BY(mutex);
};
Devices& AllDevices() {
  static auto* const devices = new Devices;
  return *devices;
}

void Protect(const std::byte* data, size_t bytes, int protection) {
  BATON_CHECK(mprotect(const_cast<std::byte*>(data), bytes, protection) == 0);
}

}  // namespace

// While it lives the host can touch the device's memory.
class GuardedDevice::Opened {
 public:
  explicit Opened(const std::map<const std::byte*, size_t>& mapped) : mapped_(mapped) {
    for (const auto& [data, bytes] : mapped_) Protect(data, bytes, PROT_READ | PROT_WRITE);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() {
    for (const auto& [data, bytes] : mapped_) Protect(data, bytes, PROT_NONE);
  }

 private:
  const std::map<const std::byte*, size_t>& mapped_;
};

GuardedDevice::GuardedDevice() : host_(MakeHostDevice()) {
  absl::MutexLock lock(&AllDevices().mutex);
  AllDevices().all.insert(this);
}

GuardedDevice::~GuardedDevice() {
  absl::MutexLock lock(&AllDevices().mutex);
  AllDevices().all.erase(this);
}

GuardedDevice* GuardedDevice::Of(const std::byte* data) {
  absl::MutexLock lock(&AllDevices().mutex);
  for (GuardedDevice* device : AllDevices().all) {
    if (device->Holds(data)) return device;
  }
  return nullptr;
}

bool GuardedDevice::Holds(const std::byte* data) const {
  absl::MutexLock lock(&mutex_);
  const auto after = mapped_.upper_bound(data);
  if (after == mapped_.begin()) return false;
  const auto& [begin, size] = *std::prev(after);
  return data < begin + size;
}

void GuardedDevice::CopyAnywhere(std::byte* to, const std::byte* from, size_t bytes) {
  std::vector<std::byte> copy;
  if (GuardedDevice* const source = Of(from); source != nullptr) {
    copy.resize(bytes);
    BATON_CHECK_OK(source->CopyToHost(copy.data(), from, bytes));
  } else {
    copy.assign(from, from + bytes);
  }
  if (GuardedDevice* const target = Of(to); target != nullptr) {
    BATON_CHECK_OK(target->CopyFromHost(to, copy.data(), bytes));
  } else {
    std::copy(copy.begin(), copy.end(), to);
  }
}

absl::StatusOr<DeviceMemory> GuardedDevice::Allocate(size_t bytes) {
  const size_t mapped = WholePages(bytes);
  void* const data = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("there are no ", bytes, " bytes to guard"));
  }
  absl::MutexLock lock(&mutex_);
  mapped_.emplace(static_cast<std::byte*>(data), mapped);
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes);
}

absl::StatusOr<DeviceMemory> GuardedDevice::AllocatePinned(size_t bytes) {
  {
    absl::MutexLock lock(&mutex_);
    BATON_RETURN_IF_ERROR(pinning_status_);
  }
  const size_t mapped = WholePages(bytes);
  void* const data =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("there are no ", bytes, " bytes to pin"));
  }
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes, /*pinned=*/true);
}

void GuardedDevice::Free(std::byte* data, size_t bytes, bool pinned) {
  if (!pinned) {
    absl::MutexLock lock(&mutex_);
    BATON_CHECK(mapped_.erase(data) == 1);
  }
  munmap(data, WholePages(bytes));
}

void GuardedDevice::CheckInside(const std::byte* data, size_t bytes) const {
  auto after = mapped_.upper_bound(data);
  BATON_CHECK(after != mapped_.begin());
  const auto& [begin, size] = *std::prev(after);
  BATON_CHECK(data + bytes <= begin + size);
}

absl::Status GuardedDevice::CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  CheckInside(to, bytes);
  const Opened opened(mapped_);
  return host_->CopyFromHost(to, from, bytes);
}

absl::Status GuardedDevice::CopyToHost(std::byte* to, const std::byte* from, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  CheckInside(from, bytes);
  const Opened opened(mapped_);
  return host_->CopyToHost(to, from, bytes);
}

absl::Status GuardedDevice::Gather(std::byte* to,
                                   std::span<const std::span<const std::byte>> from) {
  absl::MutexLock lock(&mutex_);
  BATON_RETURN_IF_ERROR(batch_status_);
  ++gathers_;
  for (const std::span<const std::byte>& piece : from) CheckInside(piece.data(), piece.size());
  const Opened opened(mapped_);
  return host_->Gather(to, from);
}

absl::Status GuardedDevice::Scatter(std::span<const std::span<std::byte>> to,
                                    const std::byte* from) {
  absl::MutexLock lock(&mutex_);
  BATON_RETURN_IF_ERROR(batch_status_);
  ++scatters_;
  for (const std::span<std::byte>& piece : to) CheckInside(piece.data(), piece.size());
  const Opened opened(mapped_);
  return host_->Scatter(to, from);
}

void GuardedDevice::FailBatches(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  batch_status_ = std::move(status);
}

void GuardedDevice::FailPinning(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  pinning_status_ = std::move(status);
}

uint64_t GuardedDevice::gathers() const {
  absl::MutexLock lock(&mutex_);
  return gathers_;
}

uint64_t GuardedDevice::scatters() const {
  absl::MutexLock lock(&mutex_);
  return scatters_;
}

}  // namespace baton
