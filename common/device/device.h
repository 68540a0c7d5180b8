// A device: memory and the copies into and out of it. Chosen once, at start.
//
// The CPU is always there. CUDA comes as a module (libbaton_cuda.so) that is loaded when it is
// asked for, so that one binary serves machines with and without a GPU. See "The device is chosen
// once" in DESIGN_NOTES.md.
#ifndef BATON_COMMON_DEVICE_DEVICE_H_
#define BATON_COMMON_DEVICE_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace baton {

enum class DeviceKind { kCpu, kCuda };

class Device;
struct CollectiveTable;
struct KernelTable;

// Owns bytes on a device, or pinned bytes of the host; move-only, returned to the device when it
// goes. The device outlives it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Device* device, std::byte* data, size_t bytes, bool pinned = false)
      : device_(device), data_(data), bytes_(bytes), pinned_(pinned) {}
  DeviceMemory(DeviceMemory&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        pinned_(other.pinned_) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(pinned_, other.pinned_);
    return *this;
  }
  ~DeviceMemory();

  // At least 64-byte aligned. The host may touch it only if it is pinned or the device is the CPU.
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool pinned_ = false;
};

// Thread-safe, but for CopyFromHost and CopyToHost, which are the engine's thread's.
class Device {
 public:
  static constexpr size_t kAlignment = 64;

  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  // For logs and `baton status`: "cpu", "cuda:0 NVIDIA H200".
  virtual std::string name() const = 0;

  // Its implementation of common/kernels. Null: the CPU's, or there is none.
  virtual const KernelTable* kernels() const { return nullptr; }
  // Its implementation of common/collective. Null: the CPU's, or there is none.
  virtual const CollectiveTable* collectives() const { return nullptr; }

  // Zero-filled. kResourceExhausted, with the size, when there is not so much.
  virtual absl::StatusOr<DeviceMemory> Allocate(size_t bytes) = 0;
  // Memory of the host that the device copies from and to at full speed. Zero-filled; errors as
  // Allocate's.
  virtual absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) = 0;
  // Copies between host and device and back, after what the engine's thread has asked the device to
  // compute; returns when the bytes have arrived.
  virtual absl::Status CopyFromHost(std::byte* device_to, const std::byte* from, size_t bytes) = 0;
  virtual absl::Status CopyToHost(std::byte* to, const std::byte* device_from, size_t bytes) = 0;
  // Many copies at once, beside whatever the device computes: pieces of its memory, in order, into
  // one run of bytes, and back. The run is the host's, best a pinned one, or the device's. Whoever
  // wrote the bytes has finished.
  virtual absl::Status Gather(std::byte* to,
                              std::span<const std::span<const std::byte>> device_from) = 0;
  virtual absl::Status Scatter(std::span<const std::span<std::byte>> device_to,
                               const std::byte* from) = 0;
  // From now on copies see what a network card says it has written into the device's memory.
  // kUnavailable: that cannot be made sure of.
  virtual absl::Status SeeRemoteWrites() const { return absl::OkStatus(); }
  // For libraries that ask CUDA which GPU the calling thread works with.
  virtual absl::Status Select() const { return absl::OkStatus(); }

 private:
  friend class DeviceMemory;
  virtual void Free(std::byte* data, size_t bytes, bool pinned) = 0;
};

struct HostMemoryOptions {
  // Large pages for what is allocated in one piece of a megabyte or more, where the kernel has
  // them.
  bool huge_pages = true;
};

// "cpu" or "cuda[:index]". kUnavailable says why a GPU cannot be had; kInvalidArgument an unknown
// name.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const std::string& name,
                                                   HostMemoryOptions host = {});
// `count` of them: "cuda:2" and those that follow it, or the CPU as often.
absl::StatusOr<std::vector<std::unique_ptr<Device>>> OpenDevices(const std::string& name,
                                                                 uint32_t count,
                                                                 HostMemoryOptions host = {});

// The same error. If it is that there is not so much memory: with what it was for and what helps.
absl::Status ExplainMemory(const absl::Status& status, const std::string& purpose,
                           const std::string& help);
template <typename T>
absl::StatusOr<T> ExplainMemory(absl::StatusOr<T> made, const std::string& purpose,
                                const std::string& help) {
  return made.ok() ? std::move(made) : ExplainMemory(made.status(), purpose, help);
}

// The CPU.
std::unique_ptr<Device> MakeHostDevice(HostMemoryOptions options = {});

}  // namespace baton

#endif  // BATON_COMMON_DEVICE_DEVICE_H_
