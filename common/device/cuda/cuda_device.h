// A GPU as a Device, through the CUDA runtime. Part of libbaton_cuda.so: see OpenDevice.
#ifndef BATON_COMMON_DEVICE_CUDA_CUDA_DEVICE_H_
#define BATON_COMMON_DEVICE_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/device/device.h"

namespace baton {

// "WHAT: cudaErrorName, description". kResourceExhausted when memory is short, else kUnavailable.
absl::Status CudaStatus(cudaError_t error, const std::string& what);

class CudaDevice final : public Device {
 public:
  // "cuda" or "cuda:INDEX". The tables outlive the device. kUnavailable: there is no such GPU.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(
      const std::string& name, const KernelTable* kernels,
      const CollectiveTable* collectives = nullptr);
  ~CudaDevice() override;

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return name_; }
  const KernelTable* kernels() const override { return kernels_; }
  const CollectiveTable* collectives() const override { return collectives_; }
  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override;
  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override;
  // Behind all that is on the stream.
  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override;
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override;
  // Beside the stream.
  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override;
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override;

  absl::Status SeeRemoteWrites() const override;

  int index() const { return index_; }
  // The runtime's current device belongs to the calling thread.
  absl::Status Select() const override;
  // What the engine's thread computes on.
  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }

 private:
  CudaDevice(int index, const cudaDeviceProp& properties, const KernelTable* kernels,
             const CollectiveTable* collectives);
  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind);
  // Waits also for copies that began before one failed: nothing is copied after this returns.
  absl::Status FinishCopies(const absl::Status& started) const;
  void Free(std::byte* data, size_t bytes, bool pinned) override;

  const int index_;
  const std::string name_;
  const cudaDeviceProp properties_;
  const KernelTable* const kernels_;
  const CollectiveTable* const collectives_;
  cudaStream_t stream_ = nullptr;
  cudaStream_t copies_ = nullptr;
};

}  // namespace baton

#endif  // BATON_COMMON_DEVICE_CUDA_CUDA_DEVICE_H_
