#include "common/kernels/cuda/device_code.cuh"
#include "tests/bench/cuda_bench_device.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLoadsInFlight = 8;

// The finalizer of SplitMix64 (Steele et al., 2014).
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The i-th number of a sequence.
__device__ uint64_t RandomAt(uint32_t seed, size_t i) {
  return Mix((static_cast<uint64_t>(seed) << 40) ^ i);
}

// Two normal numbers from uniform ones (Box and Muller, 1958).
__device__ float2 NormalAt(uint32_t seed, size_t i) {
  const uint64_t bits = RandomAt(seed, i);
  const float u = (static_cast<float>(bits >> 40) + 1.0f) * 0x1p-24f;  // In (0, 1].
  const float angle = static_cast<float>(bits & 0xffffffu) * (6.2831853f * 0x1p-24f);
  const float radius = sqrtf(-2.0f * __logf(u));
  return {radius * __cosf(angle), radius * __sinf(angle)};
}

__device__ size_t ThreadIndex() {
  return blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
}
__device__ size_t ThreadCount() { return gridDim.x * static_cast<size_t>(blockDim.x); }

template <typename T>
__global__ void FillNormalKernel(size_t pairs, float deviation, uint32_t seed, T* out) {
  WaitForPrevious();
  for (size_t i = ThreadIndex(); i < pairs; i += ThreadCount()) {
    const float2 pair = NormalAt(seed, i);
    out[2 * i] = FromFloat<T>(deviation * pair.x);
    out[2 * i + 1] = FromFloat<T>(deviation * pair.y);
  }
}

__global__ void FillBytesKernel(size_t words, uint32_t seed, uint32_t* out) {
  WaitForPrevious();
  for (size_t i = ThreadIndex(); i < words; i += ThreadCount()) {
    out[i] = static_cast<uint32_t>(RandomAt(seed, i) >> 32);
  }
}

// A row is `words` words of bytes and one more, its scale: bytes are about 74 in the mean square.
__global__ void FillQuantizedRowsKernel(size_t rows, uint32_t words, uint32_t seed, uint32_t* out) {
  WaitForPrevious();
  const size_t count = rows * (words + 1);
  for (size_t i = ThreadIndex(); i < count; i += ThreadCount()) {
    const uint32_t bits = static_cast<uint32_t>(RandomAt(seed, i) >> 32);
    const float scale = 0.0125f + 0.0025f * static_cast<float>(bits >> 8) * 0x1p-24f;
    out[i] = i % (words + 1) == words ? __float_as_uint(scale) : bits;
  }
}

__device__ uint32_t Fold(uint4 x) { return x.x ^ x.y ^ x.z ^ x.w; }

__global__ void __launch_bounds__(kThreads)
    ReadAllKernel(const uint4* __restrict__ data, size_t count, uint32_t* out) {
  WaitForPrevious();
  LetNextStart();
  uint32_t folded = 0;
  size_t i = ThreadIndex();
  const size_t stride = ThreadCount();
  for (; i + (kLoadsInFlight - 1) * stride < count; i += kLoadsInFlight * stride) {
    uint4 loaded[kLoadsInFlight];
#pragma unroll
    for (int j = 0; j < kLoadsInFlight; ++j) loaded[j] = __ldg(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kLoadsInFlight; ++j) folded ^= Fold(loaded[j]);
  }
  for (; i < count; i += stride) folded ^= Fold(__ldg(data + i));
  // Almost never, but the compiler cannot know and must read.
  if (folded == 0x13579bdfu) *out = folded;
}

__global__ void DoNothingKernel() {
  LetNextStart();
  WaitForPrevious();
}

dim3 FullGrid(const Launch& launch) {
  return dim3(static_cast<unsigned>(launch.multiprocessors * kBlocksPerMultiprocessor));
}

}  // namespace

cudaError_t FillNormal(const Launch& launch, DType type, size_t count, float deviation,
                       uint32_t seed, void* out) {
  return WithActivationType(type, [&](auto number) {
    using T = decltype(number);
    return StartKernel(&FillNormalKernel<T>, FullGrid(launch), dim3(kThreads), 0, launch, count / 2,
                       deviation, seed, static_cast<T*>(out));
  });
}

cudaError_t FillBytes(const Launch& launch, size_t bytes, uint32_t seed, void* out) {
  return StartKernel(&FillBytesKernel, FullGrid(launch), dim3(kThreads), 0, launch, bytes / 4, seed,
                     static_cast<uint32_t*>(out));
}

cudaError_t FillQuantizedRows(const Launch& launch, size_t rows, uint32_t dim, uint32_t seed,
                              void* out) {
  return StartKernel(&FillQuantizedRowsKernel, FullGrid(launch), dim3(kThreads), 0, launch, rows,
                     dim / 4, seed, static_cast<uint32_t*>(out));
}

cudaError_t ReadAll(const Launch& launch, const void* data, size_t bytes, uint32_t* out) {
  return StartKernel(&ReadAllKernel, FullGrid(launch), dim3(kThreads), 0, launch,
                     static_cast<const uint4*>(data), bytes / sizeof(uint4), out);
}

cudaError_t DoNothing(const Launch& launch) {
  return StartKernel(&DoNothingKernel, dim3(static_cast<unsigned>(launch.multiprocessors)),
                     dim3(kThreads), 0, launch);
}

}  // namespace baton::cuda
