// A GPU as a Device, through the CUDA runtime. Compiled into libbaton_cuda.so, which OpenDevice
// loads: a program that is linked to CUDA would not start where CUDA's libraries are missing.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/device/device.h"

namespace baton {
namespace {

absl::Status CudaStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // The runtime keeps the last error until somebody reads it.
  static_cast<void>(cudaGetLastError());
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, const std::string& model)
      : index_(index), name_(absl::StrCat("cuda:", index, " ", model)) {}

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string name() const override { return name_; }

  absl::StatusOr<DeviceMemory> Allocate(size_t bytes) override {
    BATON_RETURN_IF_ERROR(Select());
    void* data = nullptr;
    BATON_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&data, bytes == 0 ? 1 : bytes),
                                     absl::StrCat(name_, ": allocating ", bytes, " bytes")));
    DeviceMemory memory(this, static_cast<std::byte*>(data), bytes);
    BATON_RETURN_IF_ERROR(CudaStatus(cudaMemset(data, 0, bytes), name_ + ": clearing memory"));
    return memory;
  }

  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyHostToDevice);
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyDeviceToHost);
  }

 private:
  // The runtime's current device belongs to the calling thread.
  absl::Status Select() const { return CudaStatus(cudaSetDevice(index_), "selecting " + name_); }

  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind) const {
    BATON_RETURN_IF_ERROR(Select());
    return CudaStatus(cudaMemcpy(to, from, bytes, kind),
                      absl::StrCat(name_, ": copying ", bytes, " bytes"));
  }

  void Free(std::byte* data, size_t /*bytes*/) override {
    // Nothing can be done about memory that cannot be given back.
    if (Select().ok()) static_cast<void>(cudaFree(data));
  }

  const int index_;
  const std::string name_;
};

absl::StatusOr<std::unique_ptr<Device>> Open(const std::string& name) {
  int index = 0;
  const std::string prefix = "cuda:";
  if (name != "cuda" && (name.size() <= prefix.size() ||
                         !absl::SimpleAtoi(name.substr(prefix.size()), &index) || index < 0)) {
    return absl::InvalidArgumentError("'" + name + "': choose cuda or cuda:INDEX");
  }
  int count = 0;
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceCount(&count), "device '" + name + "': no GPU can be used"));
  if (index >= count) {
    return absl::UnavailableError(
        absl::StrCat("device '", name, "': this machine has ", count, " GPUs, counted from 0"));
  }
  cudaDeviceProp properties{};
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, index), "asking for GPU " + name));
  return std::make_unique<CudaDevice>(index, properties.name);
}

}  // namespace
}  // namespace baton

// See OpenCudaDevice in common/device/device.cc.
extern "C" __attribute__((visibility("default"))) baton::Device* BatonOpenCudaDevice(
    const char* name, char* error, size_t error_bytes) {
  absl::StatusOr<std::unique_ptr<baton::Device>> device = baton::Open(name);
  if (device.ok()) return device->release();
  std::snprintf(error, error_bytes, "%s", std::string(device.status().message()).c_str());
  return nullptr;
}
