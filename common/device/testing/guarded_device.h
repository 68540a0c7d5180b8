// A device for tests whose memory the host cannot touch: what reads or writes it past the device's
// own copies crashes, on a machine without a GPU too. It claims to be a GPU.
#ifndef BATON_COMMON_DEVICE_TESTING_GUARDED_DEVICE_H_
#define BATON_COMMON_DEVICE_TESTING_GUARDED_DEVICE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/device/device.h"

namespace baton {

// Thread-safe.
class GuardedDevice final : public Device {
 public:
  GuardedDevice();
  ~GuardedDevice() override;

  // As a network card copies that reaches GPUs: either side may lie in any guarded device.
  static void CopyAnywhere(std::byte* to, const std::byte* from, size_t bytes);

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return "guarded"; }
  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override;
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override;
  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override;
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override;
  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override;
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override;

  // From now on Gather and Scatter do nothing and return this.
  void FailBatches(absl::Status status);
  // From now on AllocatePinned returns this.
  void FailPinning(absl::Status status);
  uint64_t gathers() const;
  uint64_t scatters() const;

 private:
  class Opened;
  // The one whose memory it is; null: the host's.
  static GuardedDevice* Of(const std::byte* data);
  bool Holds(const std::byte* data) const;
  // REQUIRES: the bytes lie in one allocation of Allocate's.
  void CheckInside(const std::byte* data, size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Free(std::byte* data, size_t bytes, bool pinned) override;

  const std::unique_ptr<Device> host_;
  mutable absl::Mutex mutex_;
  std::map<const std::byte*, size_t> mapped_ ABSL_GUARDED_BY(mutex_);  // Begin and whole pages.
  absl::Status batch_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status pinning_status_ ABSL_GUARDED_BY(mutex_);
  uint64_t gathers_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t scatters_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace baton

#endif  // BATON_COMMON_DEVICE_TESTING_GUARDED_DEVICE_H_
