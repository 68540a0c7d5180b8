#include "common/device/cuda/cuda_device.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace baton {
namespace {

absl::StatusOr<int> ParseIndex(const std::string& name) {
  int index = 0;
  const std::string prefix = "cuda:";
  if (name != "cuda" && (name.size() <= prefix.size() ||
                         !absl::SimpleAtoi(name.substr(prefix.size()), &index) || index < 0)) {
    return absl::InvalidArgumentError("'" + name + "': choose cuda or cuda:INDEX");
  }
  return index;
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  // The runtime keeps the last error until somebody reads it.
  static_cast<void>(cudaGetLastError());
  const std::string message =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(const std::string& name,
                                                             const KernelTable* kernels,
                                                             const CollectiveTable* collectives) {
  BATON_ASSIGN_OR_RETURN(const int index, ParseIndex(name));
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
  std::unique_ptr<CudaDevice> device(new CudaDevice(index, properties, kernels, collectives));
  BATON_RETURN_IF_ERROR(device->Select());
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                 device->name_ + ": creating a stream"));
  return device;
}

CudaDevice::CudaDevice(int index, const cudaDeviceProp& properties, const KernelTable* kernels,
                       const CollectiveTable* collectives)
    : index_(index),
      name_(absl::StrCat("cuda:", index, " ", properties.name)),
      properties_(properties),
      kernels_(kernels),
      collectives_(collectives) {}

CudaDevice::~CudaDevice() {
  if (stream_ != nullptr && Select().ok()) static_cast<void>(cudaStreamDestroy(stream_));
}

absl::Status CudaDevice::Select() const {
  return CudaStatus(cudaSetDevice(index_), "selecting " + name_);
}

absl::StatusOr<DeviceMemory> CudaDevice::Allocate(size_t bytes) {
  BATON_RETURN_IF_ERROR(Select());
  void* data = nullptr;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&data, bytes == 0 ? 1 : bytes),
                                   absl::StrCat(name_, ": allocating ", bytes, " bytes")));
  DeviceMemory memory(this, static_cast<std::byte*>(data), bytes);
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaMemsetAsync(data, 0, bytes, stream_), name_ + ": clearing memory"));
  return memory;
}

absl::Status CudaDevice::CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) {
  return Copy(to, from, bytes, cudaMemcpyHostToDevice);
}

absl::Status CudaDevice::CopyToHost(std::byte* to, const std::byte* from, size_t bytes) {
  return Copy(to, from, bytes, cudaMemcpyDeviceToHost);
}

absl::Status CudaDevice::Copy(std::byte* to, const std::byte* from, size_t bytes,
                              cudaMemcpyKind kind) {
  BATON_RETURN_IF_ERROR(Select());
  const std::string what = absl::StrCat(name_, ": copying ", bytes, " bytes");
  BATON_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(to, from, bytes, kind, stream_), what));
  return CudaStatus(cudaStreamSynchronize(stream_), what);
}

void CudaDevice::Free(std::byte* data, size_t /*bytes*/) {
  // Nothing can be done about memory that cannot be given back.
  if (Select().ok()) static_cast<void>(cudaFree(data));
}

}  // namespace baton
