// Goal: the emulator does what CUDA promises, no more, and stops at what CUDA forbids. Method:
// small kernels and programs that are right, and the same with what they need left out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/cuda/tensor_cores.cuh"
#include "common/kernels/cuda/testing/gpu.h"

namespace baton::cuda {
namespace {

using Numbers = std::vector<uint32_t>;
using testing::ElementsAre;
using testing::ElementsAreArray;

constexpr uint32_t kThreads = 96;

const Launch kDefaultStream = {.stream = nullptr, .multiprocessors = 8, .compute_capability = 80};

Numbers Counted(uint32_t count) {
  Numbers numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  return numbers;
}

void RunWarp(void (*kernel)()) {
  ASSERT_CUDA(StartKernel(kernel, dim3(1), dim3(kWarp), 0, kDefaultStream));
  ASSERT_CUDA(cudaDeviceSynchronize());
}

// ---- Barriers ----------------------------------------------------------------------------------

template <bool kBarrier>
__global__ void ReverseKernel(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t numbers[kThreads];
  numbers[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

template <bool kBarrier>
Numbers Reversed(const Numbers& in) {
  const DeviceArray<uint32_t> device_in(in);
  const DeviceArray<uint32_t> out(kThreads);
  EXPECT_EQ(StartKernel(ReverseKernel<kBarrier>, dim3(1), dim3(kThreads), 0, kDefaultStream,
                        device_in.data(), out.data()),
            cudaSuccess);
  return out.Read();
}

TEST(CudaEmulatorTest, ThreadsSeeEachOthersMemoryBehindABarrier) {
  const Numbers in = Counted(kThreads);
  EXPECT_THAT(Reversed<true>(in), ElementsAreArray(in.rbegin(), in.rend()));
}

TEST(CudaEmulatorTest, AMissingBarrierShows) {
  Reversed<true>(Numbers(kThreads, 7));  // What lies in shared memory.
  const Numbers in = Counted(kThreads);
  const Numbers out = Reversed<false>(in);
  EXPECT_NE(out, Numbers(in.rbegin(), in.rend()));
}

__global__ void EndedThreadsKernel(uint32_t* out) {
  if (threadIdx.x >= kWarp) return;
  __syncthreads();
  out[threadIdx.x] = threadIdx.x;
}

TEST(CudaEmulatorTest, ABarrierDoesNotWaitForThreadsThatHaveEnded) {
  const DeviceArray<uint32_t> out(kWarp);
  ASSERT_CUDA(
      StartKernel(EndedThreadsKernel, dim3(1), dim3(kThreads), 0, kDefaultStream, out.data()));
  EXPECT_EQ(out.Read(), Counted(kWarp));
}

__global__ void HalfAtABarrierKernel() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

TEST(CudaEmulatorDeathTest, ThreadsThatWaitForEachOtherStopTheProcess) {
  EXPECT_DEATH(RunWarp(HalfAtABarrierKernel), "wait for each other");
}

// ---- Warps -------------------------------------------------------------------------------------

__global__ void WarpKernel(uint32_t* out) {
  const uint32_t lane = threadIdx.x % kWarp;
  out[threadIdx.x * 4] = __shfl_sync(~0u, threadIdx.x, 5);
  out[threadIdx.x * 4 + 1] = __shfl_xor_sync(~0u, threadIdx.x, 3);
  out[threadIdx.x * 4 + 2] = __shfl_up_sync(~0u, threadIdx.x, 2);
  out[threadIdx.x * 4 + 3] = __ballot_sync(~0u, lane % 3 == 0);
}

TEST(CudaEmulatorTest, LanesExchangeWhatTheyHave) {
  const DeviceArray<uint32_t> out(kThreads * 4);
  ASSERT_CUDA(StartKernel(WarpKernel, dim3(1), dim3(kThreads), 0, kDefaultStream, out.data()));
  const Numbers read = out.Read();
  for (uint32_t i = 0; i < kThreads; ++i) {
    const uint32_t first = i / kWarp * kWarp;
    EXPECT_THAT(std::vector(read.begin() + 4 * i, read.begin() + 4 * i + 4),
                ElementsAre(first + 5, i ^ 3, i % kWarp < 2 ? i : i - 2, 0x49249249u));
  }
}

__global__ void TwoOperationsKernel() {
  if (threadIdx.x < 16) {
    WarpSum(1.0f);
  } else {
    __syncwarp();
  }
}

TEST(CudaEmulatorDeathTest, LanesInDifferentOperationsStopTheProcess) {
  EXPECT_DEATH(RunWarp(TwoOperationsKernel), "different operations");
}

__global__ void EndedLaneKernel() {
  if (threadIdx.x == 3) return;
  __shfl_sync(~0u, threadIdx.x, 3);
}

TEST(CudaEmulatorDeathTest, ALookAtALaneThatHasEndedStopsTheProcess) {
  EXPECT_DEATH(RunWarp(EndedLaneKernel), "a lane that has ended");
}

// ---- Shared memory -----------------------------------------------------------------------------

template <bool kWait>
__global__ void CopyKernel(const uint32_t* in, uint32_t* out) {
  std::byte* const shared = DynamicShared();
  StartCopy(SharedAddress(shared + threadIdx.x * 16),
            reinterpret_cast<const std::byte*>(in) + threadIdx.x * 16, threadIdx.x != 1);
  if (kWait) WaitForCopies();
  for (uint32_t i = 0; i < 4; ++i) {
    out[threadIdx.x * 4 + i] = reinterpret_cast<uint32_t*>(shared)[threadIdx.x * 4 + i];
  }
}

template <bool kWait>
Numbers Copied(size_t shared_bytes) {
  const DeviceArray<uint32_t> in(Counted(12));
  const DeviceArray<uint32_t> out(12);
  EXPECT_EQ(StartKernel(CopyKernel<kWait>, dim3(1), dim3(3), shared_bytes, kDefaultStream,
                        in.data(), out.data()),
            cudaSuccess);
  return out.Read();
}

TEST(CudaEmulatorTest, CopiesToSharedMemoryAreThereOnceTheyWereWaitedFor) {
  EXPECT_THAT(Copied<true>(48), ElementsAre(0, 1, 2, 3, 0, 0, 0, 0, 8, 9, 10, 11));
  EXPECT_NE(Copied<false>(48), Copied<true>(48));
}

TEST(CudaEmulatorDeathTest, SharedMemoryThatWasNotAskedForStopsTheProcess) {
  EXPECT_DEATH(Copied<true>(32), "more shared memory");
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void ReadKernel(const uint32_t* from, uint32_t* to) { *to = *from; }

TEST(CudaEmulatorDeathTest, AReadBeyondAnAllocationShowsUnderASanitizer) {
  const DeviceArray<uint32_t> numbers(4);
  EXPECT_DEATH(
      {
        static_cast<void>(StartKernel(ReadKernel, dim3(1), dim3(1), 0, kDefaultStream,
                                      numbers.data() + 6, numbers.data()));
        cudaDeviceSynchronize();
      },
      "heap-buffer-overflow");
}
#endif

TEST(CudaEmulatorTest, ALaunchThatNoGpuTakesIsRefused) {
  EXPECT_NE(StartKernel(CopyKernel<true>, dim3(1), dim3(1025), 0, kDefaultStream, nullptr, nullptr),
            cudaSuccess);
  EXPECT_NE(
      StartKernel(CopyKernel<true>, dim3(1, 65536), dim3(1), 0, kDefaultStream, nullptr, nullptr),
      cudaSuccess);
  EXPECT_NE(
      StartKernel(CopyKernel<true>, dim3(1), dim3(1), 64 << 10, kDefaultStream, nullptr, nullptr),
      cudaSuccess);
}

// ---- Tensor cores ------------------------------------------------------------------------------

// a [16, 16] and b [8, 16] in shared memory, the layouts of "Matrix Fragments for mma.m16n8k16".
// out [16, 8] = a b^T. kColumns: b lies as [16, 8] instead.
template <typename T, bool kColumns>
__global__ void ProductKernel(const T* a, const T* b, float* out) {
  T* const shared = reinterpret_cast<T*>(DynamicShared());
  for (uint32_t i = threadIdx.x; i < 256; i += kWarp) shared[i] = a[i];
  for (uint32_t i = threadIdx.x; i < 128; i += kWarp) shared[256 + i] = b[i];
  __syncwarp();
  const uint32_t lane = threadIdx.x;
  uint32_t left[4];
  LoadMatrices(left, SharedAddress(shared + lane % 16 * 16 + lane / 16 * 8));
  uint32_t right[4];
  if (kColumns) {
    LoadTransposed(right, SharedAddress(shared + 256 + lane % 16 * 8));
  } else {
    LoadMatrices(right, SharedAddress(shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8));
  }
  float sum[4] = {};
  MultiplyAdd(sum, left, right[0], right[1], T{});
  for (uint32_t i = 0; i < 4; ++i) {
    out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

template <typename T, bool kColumns>
void ExpectProduct() {
  std::vector<T> a(256);
  std::vector<T> b(128);
  // Small integers, so that every sum is exact.
  for (uint32_t i = 0; i < a.size(); ++i) a[i] = FromFloat<T>(static_cast<float>(i * 7 % 11) - 5);
  for (uint32_t i = 0; i < b.size(); ++i) b[i] = FromFloat<T>(static_cast<float>(i * 5 % 13) - 6);
  std::vector<float> expected(128);
  for (uint32_t row = 0; row < 16; ++row) {
    for (uint32_t column = 0; column < 8; ++column) {
      for (uint32_t k = 0; k < 16; ++k) {
        const T other = kColumns ? b[k * 8 + column] : b[column * 16 + k];
        expected[row * 8 + column] += ToFloat(a[row * 16 + k]) * ToFloat(other);
      }
    }
  }
  const DeviceArray<T> device_a(a);
  const DeviceArray<T> device_b(b);
  const DeviceArray<float> out(128);
  ASSERT_CUDA(StartKernel(ProductKernel<T, kColumns>, dim3(1), dim3(kWarp), 384 * sizeof(T),
                          kDefaultStream, device_a.data(), device_b.data(), out.data()));
  EXPECT_EQ(out.Read(), expected);
}

TEST(CudaEmulatorTest, TensorCoresMultiply) {
  ExpectProduct<__half, false>();
  ExpectProduct<__nv_bfloat16, false>();
}

TEST(CudaEmulatorTest, TransposedMatricesAreTheSame) { ExpectProduct<__half, true>(); }

// Element (row, column) of an 8 x 8 matrix is 8 row + column.
__global__ void TranspositionKernel(uint32_t* out) {
  const uint32_t first = threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
  out[threadIdx.x] = Transposed(first | (first + 1) << 16);
}

TEST(CudaEmulatorTest, LanesExchangeAMatrixForItsTranspose) {
  const DeviceArray<uint32_t> out(kWarp);
  ASSERT_CUDA(
      StartKernel(TranspositionKernel, dim3(1), dim3(kWarp), 0, kDefaultStream, out.data()));
  const std::vector<uint32_t> pairs = out.Read();
  for (uint32_t i = 0; i < 64; ++i) {
    const uint32_t element = pairs[i / 2] >> i % 2 * 16 & 0xffff;
    EXPECT_EQ(element, i % 8 * 8 + i / 8) << "row " << i / 8 << " of the transpose";
  }
}

// ---- Streams -----------------------------------------------------------------------------------

class Streams : public testing::Test {
 protected:
  Streams() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&first_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&second_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), cudaSuccess);
    void* pinned = nullptr;
    EXPECT_EQ(cudaHostAlloc(&pinned, 2 * sizeof(uint32_t), cudaHostAllocDefault), cudaSuccess);
    pinned_ = static_cast<uint32_t*>(pinned);
    pinned_[0] = 1;
    pinned_[1] = 0;
  }
  ~Streams() override {
    EXPECT_EQ(cudaEventDestroy(event_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(first_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(second_), cudaSuccess);
    EXPECT_EQ(cudaFreeHost(pinned_), cudaSuccess);
  }

  // pinned_[0] to the GPU, and from there to pinned_[1].
  void Send(cudaStream_t stream) {
    ASSERT_CUDA(cudaMemcpyAsync(number_.data(), pinned_, 4, cudaMemcpyHostToDevice, stream));
  }
  void Receive(cudaStream_t stream) {
    ASSERT_CUDA(cudaMemcpyAsync(pinned_ + 1, number_.data(), 4, cudaMemcpyDeviceToHost, stream));
  }

  cudaStream_t first_ = nullptr;
  cudaStream_t second_ = nullptr;
  cudaEvent_t event_ = nullptr;
  uint32_t* pinned_ = nullptr;
  const DeviceArray<uint32_t> number_{Numbers{5}};
};

TEST_F(Streams, NothingIsDoneBeforeSomebodyWaits) {
  Send(first_);
  Receive(first_);
  EXPECT_EQ(pinned_[1], 0u);
  EXPECT_EQ(cudaStreamQuery(first_), cudaErrorNotReady);
  ASSERT_CUDA(cudaStreamSynchronize(first_));
  EXPECT_EQ(pinned_[1], 1u);
}

TEST_F(Streams, PinnedMemoryIsReadWhenTheCopyIsMade) {
  Send(first_);
  pinned_[0] = 9;  // Too early.
  Receive(first_);
  ASSERT_CUDA(cudaStreamSynchronize(first_));
  EXPECT_EQ(pinned_[1], 9u);
}

TEST_F(Streams, AStreamThatWaitsForNothingReadsWhatWasThereBefore) {
  Send(first_);
  Receive(second_);
  ASSERT_CUDA(cudaStreamSynchronize(second_));
  EXPECT_EQ(pinned_[1], 5u);
}

TEST_F(Streams, AnEventOrdersTwoStreams) {
  Send(first_);
  ASSERT_CUDA(cudaEventRecord(event_, first_));
  ASSERT_CUDA(cudaStreamWaitEvent(second_, event_, 0));
  Receive(second_);
  ASSERT_CUDA(cudaStreamSynchronize(second_));
  EXPECT_EQ(pinned_[1], 1u);
}

TEST_F(Streams, WhoWaitsForAnEventDoesNotWaitForWhatFollows) {
  ASSERT_CUDA(cudaEventRecord(event_, first_));
  Send(first_);
  ASSERT_CUDA(cudaEventSynchronize(event_));
  Receive(second_);
  ASSERT_CUDA(cudaStreamSynchronize(second_));
  EXPECT_EQ(pinned_[1], 5u);
}

TEST_F(Streams, ARecordingRunsAsOftenAsItIsLaunched) {
  ASSERT_CUDA(cudaStreamBeginCapture(first_, cudaStreamCaptureModeThreadLocal));
  Send(first_);
  ASSERT_CUDA(cudaEventRecord(event_, first_));
  ASSERT_CUDA(cudaStreamWaitEvent(second_, event_, 0));
  Receive(second_);
  ASSERT_CUDA(cudaEventRecord(event_, second_));
  ASSERT_CUDA(cudaStreamWaitEvent(first_, event_, 0));
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaStreamEndCapture(first_, &graph));
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  ASSERT_CUDA(cudaGraphDestroy(graph));
  ASSERT_CUDA(cudaStreamSynchronize(first_));
  EXPECT_EQ(pinned_[1], 0u);

  for (const uint32_t number : {3u, 4u}) {
    pinned_[0] = number;
    ASSERT_CUDA(cudaGraphLaunch(executable, first_));
    ASSERT_CUDA(cudaStreamSynchronize(first_));
    EXPECT_EQ(pinned_[1], number);
  }
  ASSERT_CUDA(cudaGraphExecDestroy(executable));
}

TEST_F(Streams, ARecordingThatDoesNotJoinItsStreamsIsRefused) {
  ASSERT_CUDA(cudaStreamBeginCapture(first_, cudaStreamCaptureModeThreadLocal));
  ASSERT_CUDA(cudaEventRecord(event_, first_));
  ASSERT_CUDA(cudaStreamWaitEvent(second_, event_, 0));
  Receive(second_);
  EXPECT_EQ(cudaStreamSynchronize(first_), cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(first_, &graph), cudaErrorStreamCaptureUnjoined);
  EXPECT_EQ(graph, nullptr);
}

TEST_F(Streams, AnEventOfACompleteRecordingCannotBeWaitedFor) {
  ASSERT_CUDA(cudaStreamBeginCapture(first_, cudaStreamCaptureModeThreadLocal));
  ASSERT_CUDA(cudaEventRecord(event_, first_));
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaStreamEndCapture(first_, &graph));
  ASSERT_CUDA(cudaGraphDestroy(graph));
  EXPECT_EQ(cudaStreamWaitEvent(second_, event_, 0), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaEventSynchronize(event_), cudaErrorCapturedEvent);
}

TEST_F(Streams, CopiesBeyondAnAllocationAreRefused) {
  EXPECT_EQ(cudaMemcpy(number_.data(), pinned_, 6, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(pinned_, pinned_, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
}

// ---- Failures ----------------------------------------------------------------------------------

// What is lost stays lost until its process ends.
void InAProcessOfItsOwn(const std::function<void()>& body) {
  EXPECT_EXIT(
      {
        body();
        std::exit(testing::Test::HasFailure() ? 1 : 0);
      },
      testing::ExitedWithCode(0), "");
}

// Takes two pieces of 600 bytes of 1000.
void ExpectAnEnd(cudaError_t (*allocate)(void** data, size_t bytes), cudaError_t (*free)(void*)) {
  void* first = nullptr;
  void* second = nullptr;
  ASSERT_CUDA(allocate(&first, 600));
  EXPECT_EQ(allocate(&second, 600), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "it is not for good";
  ASSERT_CUDA(free(first));
  ASSERT_CUDA(allocate(&second, 600));
  ASSERT_CUDA(free(second));
}

TEST(CudaEmulatorDeathTest, MemoryEnds) {
  InAProcessOfItsOwn([] {
    setenv("BATON_EMULATED_GPU_MEMORY", "1000", 1);
    ExpectAnEnd(cudaMalloc, cudaFree);
    void* first = nullptr;
    void* second = nullptr;
    ASSERT_CUDA(cudaMalloc(&first, 1000));
    ASSERT_CUDA(cudaSetDevice(1));
    EXPECT_EQ(cudaMalloc(&second, 1000), cudaSuccess) << "each GPU has so much";
  });
}

TEST(CudaEmulatorDeathTest, PinnedMemoryEnds) {
  InAProcessOfItsOwn([] {
    setenv("BATON_EMULATED_PINNED_MEMORY", "1000", 1);
    ExpectAnEnd(cudaMallocHost, cudaFreeHost);
  });
}

class LostGpuDeathTest : public Streams {
 protected:
  ~LostGpuDeathTest() override { std::filesystem::remove(file_); }

  // The GPU is lost after so many operations more.
  void LoseAfter(int operations) const {
    std::ofstream(file_) << operations;
    setenv("BATON_EMULATED_GPU_FAILS_WHEN", file_.c_str(), 1);
  }

  const std::string file_ = testing::TempDir() + "lost_gpu_" + std::to_string(getpid());
};

TEST_F(LostGpuDeathTest, ShowsWhenItIsWaitedFor) {
  InAProcessOfItsOwn([this] {
    LoseAfter(1);
    Send(first_);
    Receive(first_);  // This one is taken, and not done.
    EXPECT_EQ(cudaStreamQuery(first_), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamSynchronize(first_), cudaErrorIllegalAddress);
    EXPECT_EQ(pinned_[1], 0u);
  });
}

TEST_F(LostGpuDeathTest, ShowsWhenAnEventIsWaitedFor) {
  InAProcessOfItsOwn([this] {
    LoseAfter(0);
    Send(first_);
    ASSERT_CUDA(cudaEventRecord(event_, first_));
    EXPECT_EQ(cudaEventSynchronize(event_), cudaErrorIllegalAddress);
  });
}

TEST_F(LostGpuDeathTest, StaysLostAndDoesNothing) {
  InAProcessOfItsOwn([this] {
    LoseAfter(0);
    Send(first_);
    EXPECT_EQ(cudaStreamSynchronize(first_), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress) << "reading it does not end it";
    EXPECT_STREQ(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");

    pinned_[1] = 7;
    EXPECT_EQ(cudaMemcpyAsync(pinned_ + 1, number_.data(), 4, cudaMemcpyDeviceToHost, second_),
              cudaErrorIllegalAddress);
    EXPECT_EQ(cudaStreamSynchronize(second_), cudaErrorIllegalAddress);
    EXPECT_EQ(pinned_[1], 7u);
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 1), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaMallocHost(&memory, 1), cudaErrorIllegalAddress);
    EXPECT_EQ(StartKernel(EndedLaneKernel, dim3(1), dim3(kWarp), 0, kDefaultStream),
              cudaErrorIllegalAddress);
    cudaEvent_t event = nullptr;
    EXPECT_EQ(cudaEventCreate(&event), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaEventRecord(event, first_), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  });
}

TEST_F(LostGpuDeathTest, LeavesTheOthersAlone) {
  InAProcessOfItsOwn([this] {
    LoseAfter(0);
    Send(first_);
    EXPECT_EQ(cudaStreamSynchronize(first_), cudaErrorIllegalAddress);

    ASSERT_CUDA(cudaSetDevice(1));
    const DeviceArray<uint32_t> other(Numbers{3});
    EXPECT_THAT(other.Read(), ElementsAre(3));
    EXPECT_EQ(cudaSetDevice(0), cudaErrorIllegalAddress);
  });
}

TEST_F(LostGpuDeathTest, LeavesARecordingHalfDone) {
  InAProcessOfItsOwn([this] {
    ASSERT_CUDA(cudaStreamBeginCapture(first_, cudaStreamCaptureModeThreadLocal));
    Send(first_);
    Receive(first_);
    cudaGraph_t graph = nullptr;
    ASSERT_CUDA(cudaStreamEndCapture(first_, &graph));
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    LoseAfter(2);  // The launch, and what was sent.
    ASSERT_CUDA(cudaGraphLaunch(executable, first_));
    EXPECT_EQ(cudaStreamSynchronize(first_), cudaErrorIllegalAddress);
    EXPECT_EQ(pinned_[1], 0u);
    EXPECT_EQ(cudaGraphExecDestroy(executable), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaErrorIllegalAddress);
  });
}

}  // namespace
}  // namespace baton::cuda
