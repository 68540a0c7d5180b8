// A GPU as a Device, through the CUDA runtime. Compiled into libbaton_cuda.so, which OpenDevice
// loads: a program that is linked to CUDA would not start where CUDA's libraries are missing.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
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

// Pieces of equal size at equal distances: a matrix in the device's memory.
struct Rows {
  size_t width = 0;
  size_t pitch = 0;  // From one row to the next, at least `width`.
  size_t count = 0;
};

// The most pieces from the first on that are such a matrix. REQUIRES: not empty.
template <typename Span>
Rows LeadingRows(std::span<const Span> pieces, size_t pitch_max) {
  Rows rows = {pieces[0].size(), pieces[0].size(), 1};
  for (; rows.count < pieces.size(); ++rows.count) {
    const Span& last = pieces[rows.count - 1];
    const Span& next = pieces[rows.count];
    if (next.size() != rows.width || next.data() < last.data()) break;
    const auto pitch = static_cast<size_t>(next.data() - last.data());
    if (rows.count == 1) rows.pitch = pitch;
    if (pitch != rows.pitch || pitch < rows.width || pitch > pitch_max) break;
  }
  if (rows.count == 1) rows.pitch = rows.width;
  return rows;
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, const std::string& model, cudaStream_t copies, size_t pitch_max)
      : index_(index),
        name_(absl::StrCat("cuda:", index, " ", model)),
        copies_(copies),
        pitch_max_(pitch_max) {}
  ~CudaDevice() override {
    if (Select().ok()) static_cast<void>(cudaStreamDestroy(copies_));
  }

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

  absl::StatusOr<DeviceMemory> AllocatePinned(size_t bytes) override {
    BATON_RETURN_IF_ERROR(Select());
    void* data = nullptr;
    BATON_RETURN_IF_ERROR(
        CudaStatus(cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocPortable),
                   absl::StrCat(name_, ": pinning ", bytes, " bytes of the host")));
    std::memset(data, 0, bytes);
    return DeviceMemory(this, static_cast<std::byte*>(data), bytes, /*pinned=*/true);
  }

  absl::Status CopyFromHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyHostToDevice);
  }
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) override {
    return Copy(to, from, bytes, cudaMemcpyDeviceToHost);
  }

  absl::Status Gather(std::byte* to, std::span<const std::span<const std::byte>> from) override {
    BATON_RETURN_IF_ERROR(Select());
    absl::Status started;
    while (!from.empty() && started.ok()) {
      const Rows rows = LeadingRows(from, pitch_max_);
      started = StartCopy(to, rows.width, from[0].data(), rows.pitch, rows, cudaMemcpyDeviceToHost);
      to += rows.width * rows.count;
      from = from.subspan(rows.count);
    }
    return FinishCopies(started);
  }
  absl::Status Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) override {
    BATON_RETURN_IF_ERROR(Select());
    absl::Status started;
    while (!to.empty() && started.ok()) {
      const Rows rows = LeadingRows(to, pitch_max_);
      started = StartCopy(to[0].data(), rows.pitch, from, rows.width, rows, cudaMemcpyHostToDevice);
      from += rows.width * rows.count;
      to = to.subspan(rows.count);
    }
    return FinishCopies(started);
  }

 private:
  // The runtime's current device belongs to the calling thread.
  absl::Status Select() const { return CudaStatus(cudaSetDevice(index_), "selecting " + name_); }

  absl::Status Copy(std::byte* to, const std::byte* from, size_t bytes, cudaMemcpyKind kind) const {
    BATON_RETURN_IF_ERROR(Select());
    return CudaStatus(cudaMemcpy(to, from, bytes, kind),
                      absl::StrCat(name_, ": copying ", bytes, " bytes"));
  }

  absl::Status StartCopy(std::byte* to, size_t to_pitch, const std::byte* from, size_t from_pitch,
                         const Rows& rows, cudaMemcpyKind kind) const {
    const cudaError_t error = rows.count == 1
                                  ? cudaMemcpyAsync(to, from, rows.width, kind, copies_)
                                  : cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, rows.width,
                                                      rows.count, kind, copies_);
    return CudaStatus(
        error, absl::StrCat(name_, ": copying ", rows.count, " pieces of ", rows.width, " bytes"));
  }
  // Waits also for copies that began before one failed: nothing is copied after this returns.
  absl::Status FinishCopies(const absl::Status& started) const {
    const absl::Status finished =
        CudaStatus(cudaStreamSynchronize(copies_), name_ + ": finishing copies");
    return started.ok() ? finished : started;
  }

  void Free(std::byte* data, size_t /*bytes*/, bool pinned) override {
    // Nothing can be done about memory that cannot be given back.
    if (Select().ok()) static_cast<void>(pinned ? cudaFreeHost(data) : cudaFree(data));
  }

  const int index_;
  const std::string name_;
  // Beside the streams that compute: it waits for none of them.
  const cudaStream_t copies_;
  const size_t pitch_max_;
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
  BATON_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(index), "selecting GPU " + name));
  cudaStream_t copies = nullptr;
  BATON_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking),
                                   "making the stream of copies of GPU " + name));
  return std::make_unique<CudaDevice>(index, properties.name, copies, properties.memPitch);
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
