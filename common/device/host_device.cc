#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/device/device.h"

namespace baton {
namespace {

class HostDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string name() const override { return "cpu"; }

  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override {
    // A zero-byte request still gets an address, so that data() is never null.
    const size_t rounded = std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment;
    void* data = std::aligned_alloc(kAlignment, rounded);
    if (data == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("the host has no ", bytes, " bytes free"));
    }
    std::memset(data, 0, rounded);
    return DeviceMemory(this, static_cast<std::byte*>(data), bytes);
  }

  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }

 private:
  void Free(std::byte* data, size_t /*bytes*/) override { std::free(data); }
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace baton
