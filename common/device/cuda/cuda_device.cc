#include "common/device/cuda/cuda_device.h"

#include <cstring>

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

absl::Status StartCopy(std::byte* to, size_t to_pitch, const std::byte* from, size_t from_pitch,
                       const Rows& rows, cudaStream_t stream) {
  // The run is the host's or the device's: its address tells.
  constexpr cudaMemcpyKind kKind = cudaMemcpyDefault;
  const cudaError_t error = rows.count == 1
                                ? cudaMemcpyAsync(to, from, rows.width, kKind, stream)
                                : cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, rows.width,
                                                    rows.count, kKind, stream);
  return CudaStatus(error,
                    absl::StrCat("copying ", rows.count, " pieces of ", rows.width, " bytes"));
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
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&device->copies_, cudaStreamNonBlocking),
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
  // Also of a device that is lost the host holds something.
  static_cast<void>(Select());
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  if (copies_ != nullptr) static_cast<void>(cudaStreamDestroy(copies_));
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
      CudaStatus(cudaMemsetAsync(data, 0, bytes, copies_), name_ + ": clearing memory"));
  BATON_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(copies_), name_ + ": clearing memory"));
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

absl::StatusOr<DeviceMemory> CudaDevice::AllocatePinned(size_t bytes) {
  BATON_RETURN_IF_ERROR(Select());
  void* data = nullptr;
  BATON_RETURN_IF_ERROR(
      CudaStatus(cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocPortable),
                 absl::StrCat(name_, ": pinning ", bytes, " bytes of the host")));
  std::memset(data, 0, bytes);
  return DeviceMemory(this, static_cast<std::byte*>(data), bytes, /*pinned=*/true);
}

absl::Status CudaDevice::Gather(std::byte* to, std::span<const std::span<const std::byte>> from) {
  BATON_RETURN_IF_ERROR(Select());
  absl::Status started;
  while (!from.empty() && started.ok()) {
    const Rows rows = LeadingRows(from, properties_.memPitch);
    started = StartCopy(to, rows.width, from[0].data(), rows.pitch, rows, copies_);
    to += rows.width * rows.count;
    from = from.subspan(rows.count);
  }
  return FinishCopies(started);
}

absl::Status CudaDevice::Scatter(std::span<const std::span<std::byte>> to, const std::byte* from) {
  BATON_RETURN_IF_ERROR(Select());
  absl::Status started;
  while (!to.empty() && started.ok()) {
    const Rows rows = LeadingRows(to, properties_.memPitch);
    started = StartCopy(to[0].data(), rows.pitch, from, rows.width, rows, copies_);
    from += rows.width * rows.count;
    to = to.subspan(rows.count);
  }
  return FinishCopies(started);
}

// On some GPUs what a network card has written may arrive behind its word that it has.
absl::Status CudaDevice::SeeRemoteWrites() const {
  if (properties_.gpuDirectRDMASupported == 0 ||
      properties_.gpuDirectRDMAWritesOrdering >= cudaGPUDirectRDMAWritesOrderingOwner) {
    return absl::OkStatus();
  }
  if ((properties_.gpuDirectRDMAFlushWritesOptions & cudaFlushGPUDirectRDMAWritesOptionHost) == 0) {
    return absl::UnavailableError(name_ +
                                  " neither orders the writes of others nor waits for them");
  }
  BATON_RETURN_IF_ERROR(Select());
  return CudaStatus(
      cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice,
                                         cudaFlushGPUDirectRDMAWritesToOwner),
      name_ + ": waiting for remote writes");
}

absl::Status CudaDevice::FinishCopies(const absl::Status& started) const {
  const absl::Status finished =
      CudaStatus(cudaStreamSynchronize(copies_), name_ + ": finishing copies");
  return started.ok() ? finished : started;
}

void CudaDevice::Free(std::byte* data, size_t /*bytes*/, bool pinned) {
  // Nothing can be done about memory that cannot be given back.
  static_cast<void>(Select());
  static_cast<void>(pinned ? cudaFreeHost(data) : cudaFree(data));
}

}  // namespace baton
