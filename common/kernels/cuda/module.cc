// The entry of libbaton_cuda.so, which OpenDevice (common/device/device.h) loads: a program that is
// linked to CUDA would not start where CUDA's libraries are missing.
#include <cstdio>
#include <memory>
#include <string>

#include "common/collective/nccl/nccl_collective.h"
#include "common/device/cuda/cuda_device.h"
#include "common/kernels/cuda/cuda_kernels.h"

// See OpenCudaDevice in common/device/device.cc.
extern "C" __attribute__((visibility("default"))) baton::Device* BatonOpenCudaDevice(
    const char* name, char* error, size_t error_bytes) {
  absl::StatusOr<std::unique_ptr<baton::CudaDevice>> device =
      baton::CudaDevice::Open(name, &baton::cuda::CudaKernels(), baton::NcclCollectives());
  if (device.ok()) return device->release();
  std::snprintf(error, error_bytes, "%s", std::string(device.status().message()).c_str());
  return nullptr;
}
