// The functions of the CUDA runtime that Baton calls, for GPUs that are not there: as many as
// BATON_EMULATED_GPUS says (default 4), of Ampere's kind.
//
// One lock for everything: a call that waits does the work itself, and holds the others up.
#include "tests/cuda_emulator/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_emulator/failures.h"
#include "tests/cuda_emulator/streams.h"
#include "tests/cuda_emulator/thread_blocks.h"

namespace baton::emulation {
namespace {

constexpr int kMultiprocessors = 8;
constexpr size_t kAlignment = 256;
constexpr size_t kPitchMax = (size_t{1} << 31) - 1;
// Without and with cudaFuncSetAttribute, on GPUs of compute capability 8.0.
constexpr size_t kSharedBytes = size_t{48} << 10;
constexpr size_t kSharedBytesMax = size_t{163} << 10;
constexpr uint32_t kThreadsMax = 1024;
constexpr uint32_t kGridYzMax = 65535;
// Memory that nobody has written holds NaN, in every float type; of very large pieces the start.
constexpr int kUnwritten = 0xff;
constexpr size_t kUnwrittenBytesMax = size_t{16} << 20;

int DeviceCount() {
  const char* const count = std::getenv("BATON_EMULATED_GPUS");
  return count == nullptr ? 4 : std::atoi(count);
}

// Pieces of memory by where they begin.
class Allocations {
 public:
  // Null: `owner` would then have more than `bytes_max`.
  void* Add(size_t bytes, int owner, size_t bytes_max) {
    size_t& used = used_[owner];
    void* data = nullptr;
    if (bytes > bytes_max || used > bytes_max - bytes ||
        posix_memalign(&data, kAlignment, std::max(bytes, size_t{1})) != 0) {
      return nullptr;
    }
    std::memset(data, kUnwritten, std::min(bytes, kUnwrittenBytesMax));
    pieces_[static_cast<std::byte*>(data)] = {bytes, owner};
    used += bytes;
    return data;
  }
  // False: there is no such piece.
  bool Remove(void* data) {
    const auto piece = pieces_.find(static_cast<std::byte*>(data));
    if (piece == pieces_.end()) return false;
    used_[piece->second.owner] -= piece->second.bytes;
    pieces_.erase(piece);
    std::free(data);
    return true;
  }
  bool Holds(const void* begin, size_t bytes) const {
    auto* const at = static_cast<std::byte*>(const_cast<void*>(begin));
    auto piece = pieces_.upper_bound(at);
    if (piece == pieces_.begin()) return false;
    --piece;
    return at + bytes <= piece->first + piece->second.bytes;
  }

 private:
  struct Piece {
    size_t bytes = 0;
    int owner = 0;
  };
  std::map<std::byte*, Piece> pieces_;
  std::map<int, size_t> used_;  // By owner.
};

struct Runtime {
  std::mutex mutex;
  std::condition_variable_any changed;
  Allocations device;
  Allocations pinned;
  std::set<std::shared_ptr<Stream>> streams;
  std::map<int, std::shared_ptr<Stream>> default_streams;
  std::map<const void*, size_t> shared_bytes;  // That a kernel may ask for, if more than usual.
};

Runtime& TheRuntime() {
  static auto* const runtime = new Runtime;
  return *runtime;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

// The end of every call that needs the current device. After one that is lost nothing else counts.
cudaError_t Done(cudaError_t error = cudaSuccess) {
  if (IsLost(current_device)) return kLostError;
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Handles of CUDA point to these.
std::shared_ptr<Event>& EventOf(cudaEvent_t event) {
  return *reinterpret_cast<std::shared_ptr<Event>*>(event);
}

struct Copy {
  std::byte* to = nullptr;
  size_t to_pitch = 0;
  const std::byte* from = nullptr;
  size_t from_pitch = 0;
  size_t width = 0;
  size_t rows = 1;

  void Run() const {
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(to + row * to_pitch, from + row * from_pitch, width);
    }
  }
  size_t BytesOf(size_t pitch) const { return rows == 0 ? 0 : (rows - 1) * pitch + width; }
};

// Whether both sides are what `kind` says.
bool IsLegal(const Copy& copy, cudaMemcpyKind kind) {
  const Allocations& device = TheRuntime().device;
  const bool to_device = device.Holds(copy.to, copy.BytesOf(copy.to_pitch));
  const bool from_device = device.Holds(copy.from, copy.BytesOf(copy.from_pitch));
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device;
    case cudaMemcpyDefault:
      return true;
    default:
      return false;
  }
}

cudaError_t SubmitCopy(const Copy& copy, cudaMemcpyKind kind, Stream& stream) {
  if (copy.width == 0 || copy.rows == 0) return cudaSuccess;
  if (!IsLegal(copy, kind)) return cudaErrorInvalidValue;
  const size_t from_bytes = copy.BytesOf(copy.from_pitch);
  if (!stream.recording() && !TheRuntime().pinned.Holds(copy.from, from_bytes) &&
      !TheRuntime().device.Holds(copy.from, from_bytes)) {
    // From other memory of the host than pinned one it is read before the call returns.
    auto kept = std::make_shared<std::vector<std::byte>>(copy.from, copy.from + from_bytes);
    Copy from_kept = copy;
    from_kept.from = kept->data();
    stream.Submit([from_kept, kept] { from_kept.Run(); });
    return cudaSuccess;
  }
  stream.Submit([copy] { copy.Run(); });
  return cudaSuccess;
}

// All that was submitted to the current device.
void RunDevice() {
  std::vector<std::shared_ptr<Stream>> streams = {StreamOf(nullptr)};
  for (const std::shared_ptr<Stream>& stream : TheRuntime().streams) {
    if (stream->device() == current_device) streams.push_back(stream);
  }
  for (const std::shared_ptr<Stream>& stream : streams) stream->RunAll();
}

}  // namespace

std::mutex& RuntimeMutex() { return TheRuntime().mutex; }
void WaitForOthers() { TheRuntime().changed.wait(TheRuntime().mutex); }
void NotifyOthers() { TheRuntime().changed.notify_all(); }

std::shared_ptr<Stream> StreamOf(cudaStream_t stream) {
  if (stream != nullptr) return reinterpret_cast<Stream*>(stream)->shared_from_this();
  std::shared_ptr<Stream>& made = TheRuntime().default_streams[current_device];
  if (made == nullptr) made = std::make_shared<Stream>(current_device);
  return made;
}

cudaError_t LaunchThreads(const cudaLaunchConfig_t& config, const void* kernel,
                          std::function<void()> thread) {
  const std::lock_guard lock(TheRuntime().mutex);
  const dim3& blocks = config.gridDim;
  const dim3& threads = config.blockDim;
  const uint64_t block_threads = uint64_t{threads.x} * threads.y * threads.z;
  const auto allowed = TheRuntime().shared_bytes.find(kernel);
  const size_t shared_max =
      allowed == TheRuntime().shared_bytes.end() ? kSharedBytes : allowed->second;
  if (block_threads == 0 || block_threads > kThreadsMax || blocks.x == 0 || blocks.y == 0 ||
      blocks.z == 0 || blocks.y > kGridYzMax || blocks.z > kGridYzMax ||
      config.dynamicSmemBytes > shared_max) {
    return Done(cudaErrorInvalidConfiguration);
  }
  StreamOf(config.stream)
      ->Submit([grid = Grid{blocks, threads, config.dynamicSmemBytes, std::move(thread)}] {
        RunGrid(grid);
      });
  return Done();
}

bool SubmitTo(cudaStream_t stream, std::function<void()> operation) {
  const std::lock_guard lock(TheRuntime().mutex);
  StreamOf(stream)->Submit(std::move(operation));
  return !IsLost(StreamOf(stream)->device());
}

// What follows are the functions of the library.
extern "C" {

// ---- Devices and errors ------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = DeviceCount();
  return Done(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= DeviceCount()) return Done(cudaErrorInvalidDevice);
  *properties = cudaDeviceProp{};
  std::strncpy(properties->name, "emulated GPU", sizeof(properties->name) - 1);
  properties->major = 8;
  properties->multiProcessorCount = kMultiprocessors;
  properties->memPitch = kPitchMax;
  properties->gpuDirectRDMASupported = 1;
  properties->gpuDirectRDMAFlushWritesOptions = cudaFlushGPUDirectRDMAWritesOptionHost;
  properties->sharedMemPerBlockOptin = kSharedBytesMax;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= DeviceCount()) return Done(cudaErrorInvalidDevice);
  current_device = device;
  return Done();
}

// Others write into the host's memory, and those writes are ordered.
cudaError_t cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTarget /*target*/,
                                               cudaFlushGPUDirectRDMAWritesScope /*scope*/) {
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(TheRuntime().mutex);
  RunDevice();
  return Done();
}

cudaError_t cudaGetLastError() {
  return IsLost(current_device) ? kLostError : std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "an error of the emulated CUDA runtime";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorIllegalAddress) return "an illegal memory access was encountered";
  static thread_local std::string text;
  text = "error " + std::to_string(error) + " of the emulated CUDA runtime";
  return text.c_str();
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* /*symbol*/, void** function,
                                             unsigned int /*version*/, unsigned long long /*flags*/,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- Kernels -----------------------------------------------------------------------------------

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* /*kernel*/) {
  *attributes = cudaFuncAttributes{};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return Done(cudaErrorNotSupported);
  }
  if (value < 0 || static_cast<size_t>(value) > kSharedBytesMax) return Done(cudaErrorInvalidValue);
  const std::lock_guard lock(TheRuntime().mutex);
  TheRuntime().shared_bytes[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

// ---- Memory ------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** data, size_t bytes) {
  const std::lock_guard lock(TheRuntime().mutex);
  *data = IsLost(current_device) ? nullptr
                                 : TheRuntime().device.Add(bytes, current_device, GpuMemoryMax());
  return Done(*data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  const std::lock_guard lock(TheRuntime().mutex);
  RunDevice();
  return Done(TheRuntime().device.Remove(data) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int /*flags*/) {
  const std::lock_guard lock(TheRuntime().mutex);
  *data = IsLost(current_device) ? nullptr
                                 : TheRuntime().pinned.Add(bytes, /*owner=*/0, PinnedMemoryMax());
  return Done(*data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return cudaHostAlloc(data, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* data) {
  const std::lock_guard lock(TheRuntime().mutex);
  RunDevice();
  return Done(TheRuntime().pinned.Remove(data) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard lock(TheRuntime().mutex);
  if (rows > 1 && std::max(to_pitch, from_pitch) > kPitchMax) return Done(cudaErrorInvalidValue);
  const Copy copy = {static_cast<std::byte*>(to),
                     to_pitch,
                     static_cast<const std::byte*>(from),
                     from_pitch,
                     width,
                     rows};
  return Done(SubmitCopy(copy, kind, *StreamOf(stream)));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : error;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(TheRuntime().mutex);
  if (!TheRuntime().device.Holds(data, bytes)) return Done(cudaErrorInvalidValue);
  StreamOf(stream)->Submit([=] { std::memset(data, value, bytes); });
  return Done();
}

cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  return cudaMemsetAsync(data, value, bytes, nullptr);
}

// ---- Streams and events ------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int /*flags*/) {
  const std::lock_guard lock(TheRuntime().mutex);
  auto created = std::make_shared<Stream>(current_device);
  *stream = reinterpret_cast<cudaStream_t>(created.get());
  TheRuntime().streams.insert(std::move(created));
  return Done();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(TheRuntime().mutex);
  const auto kept = StreamOf(stream);
  kept->RunAll();
  TheRuntime().streams.erase(kept);
  return Done();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(TheRuntime().mutex);
  if (StreamOf(stream)->recording()) return Done(cudaErrorStreamCaptureUnsupported);
  StreamOf(stream)->RunAll();
  return Done();
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const std::lock_guard lock(TheRuntime().mutex);
  if (const cudaError_t error = Done(); error != cudaSuccess) return error;
  return StreamOf(stream)->idle() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int /*flags*/) {
  if (event == nullptr) return Done(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(TheRuntime().mutex);
  return Done(StreamOf(stream)->WaitFor(*EventOf(event)));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int /*flags*/) {
  *event = nullptr;
  if (const cudaError_t error = Done(); error != cudaSuccess) return error;
  *event = reinterpret_cast<cudaEvent_t>(new std::shared_ptr<Event>(std::make_shared<Event>()));
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event == nullptr) return Done(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(TheRuntime().mutex);
  delete &EventOf(event);
  return Done();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event == nullptr) return Done(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(TheRuntime().mutex);
  StreamOf(stream)->Record(EventOf(event));
  return Done();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event == nullptr) return Done(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(TheRuntime().mutex);
  const Event recorded = *EventOf(event);  // As it is now: others may record it again meanwhile.
  if (recorded.captured) return Done(cudaErrorCapturedEvent);
  if (recorded.stream != nullptr) recorded.stream->RunUntil(recorded.position);
  return Done();
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (begin == nullptr || end == nullptr) return Done(cudaErrorInvalidResourceHandle);
  const std::lock_guard lock(TheRuntime().mutex);
  const auto elapsed = EventOf(end)->time - EventOf(begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(elapsed).count();
  return Done();
}

// ---- Graphs ------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  const std::lock_guard lock(TheRuntime().mutex);
  return Done(StreamOf(stream)->BeginRecording());
}

// A graph, and a graph that can be run, are pointers to the operations.
using Operations = std::shared_ptr<const std::vector<Operation>>;

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(TheRuntime().mutex);
  *graph = nullptr;
  std::shared_ptr<Recording> recording;
  const cudaError_t error = Done(StreamOf(stream)->EndRecording(&recording));
  if (error != cudaSuccess) return error;
  *graph = reinterpret_cast<cudaGraph_t>(new Operations(
      std::make_shared<const std::vector<Operation>>(std::move(recording->operations))));
  return Done();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  *executable = nullptr;
  if (const cudaError_t error = Done(); error != cudaSuccess) return error;
  *executable =
      reinterpret_cast<cudaGraphExec_t>(new Operations(*reinterpret_cast<Operations*>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Operations*>(graph);
  return Done();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Operations*>(executable);
  return Done();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const int device = current_device;
  SubmitTo(stream, [device, operations = *reinterpret_cast<Operations*>(executable)] {
    for (const Operation& operation : *operations) {
      if (DoesNext(device)) operation();
    }
  });
  return Done();
}

}  // extern "C"

}  // namespace baton::emulation
