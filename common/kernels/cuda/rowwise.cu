// Operations on single rows: embedding, norms, rotation, KV writes, elementwise.
//
// All of them are bound by memory. A row is read once, in vectors of 16 bytes where its length
// allows, and sums are float32.
#include <cuda_fp8.h>

#include <algorithm>

#include "common/kernels/cuda/device_code.cuh"
#include "common/tensor/kv_row.h"
#include "common/tensor/number_formats.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kThreads = 256;

// `kCount` numbers that are loaded and stored at once.
template <typename T, uint32_t kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <uint32_t kCount, typename T>
__device__ void LoadFloats(const T* from, float (&to)[kCount]) {
  const Pack<T, kCount> pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) to[i] = ToFloat(pack.values[i]);
}

template <uint32_t kCount, typename T>
__device__ void StoreFloats(const float (&from)[kCount], T* to) {
  Pack<T, kCount> pack;
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) pack.values[i] = FromFloat<T>(from[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// The sum over all threads of a block, to all of them.
__device__ float BlockSum(float x) {
  __shared__ float sums[kWarp];
  x = WarpSum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  const uint32_t warps = (blockDim.x + kWarp - 1) / kWarp;
  return WarpSum(threadIdx.x % kWarp < warps ? sums[threadIdx.x % kWarp] : 0.0f);
}

template <typename T>
__global__ void EmbeddingKernel(const T* table, const int32_t* ids, const int32_t* chosen,
                                uint32_t n, float* out) {
  WaitForPrevious();
  LetNextStart();
  const int32_t id = ids[blockIdx.x];
  const T* const from = table + static_cast<size_t>(id < 0 ? chosen[-1 - id] : id) * n;
  float* const to = out + static_cast<size_t>(blockIdx.x) * n;
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = ToFloat(from[i]);
}

// One block for a row of x. kAdd: x += y first, and the sum is kept.
template <uint32_t kCount, bool kAdd, typename X, typename Y, typename Out>
__global__ void RmsNormKernel(X* x, const Y* y, const float* weight, float epsilon, uint32_t n,
                              Out* out) {
  WaitForPrevious();
  LetNextStart();
  const size_t row = static_cast<size_t>(blockIdx.x) * n;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x * kCount; i < n; i += blockDim.x * kCount) {
    float value[kCount];
    LoadFloats<kCount>(x + row + i, value);
    if constexpr (kAdd) {
      float added[kCount];
      LoadFloats<kCount>(y + row + i, added);
#pragma unroll
      for (uint32_t j = 0; j < kCount; ++j) value[j] += added[j];
      StoreFloats<kCount>(value, x + row + i);
    }
#pragma unroll
    for (uint32_t j = 0; j < kCount; ++j) sum += value[j] * value[j];
  }
  const float factor = rsqrtf(BlockSum(sum) / static_cast<float>(n) + epsilon);
  // Each thread reads what it has written itself.
  for (uint32_t i = threadIdx.x * kCount; i < n; i += blockDim.x * kCount) {
    float value[kCount];
    float scale[kCount];
    LoadFloats<kCount>(x + row + i, value);
    LoadFloats<kCount>(weight + i, scale);
#pragma unroll
    for (uint32_t j = 0; j < kCount; ++j) value[j] = scale[j] * (value[j] * factor);
    StoreFloats<kCount>(value, out + row + i);
  }
}

// The same for short rows, such as single heads: one warp for each.
template <typename X, typename Out>
__global__ void ShortRmsNormKernel(const X* x, const float* weight, float epsilon, uint32_t rows,
                                   uint32_t n, Out* out) {
  WaitForPrevious();
  LetNextStart();
  const uint32_t row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const uint32_t lane = threadIdx.x % kWarp;
  const X* const from = x + static_cast<size_t>(row) * n;
  float sum = 0.0f;
  for (uint32_t i = lane; i < n; i += kWarp) {
    const float value = ToFloat(from[i]);
    sum += value * value;
  }
  const float factor = rsqrtf(WarpSum(sum) / static_cast<float>(n) + epsilon);
  for (uint32_t i = lane; i < n; i += kWarp) {
    out[static_cast<size_t>(row) * n + i] = FromFloat<Out>(weight[i] * (ToFloat(from[i]) * factor));
  }
}

template <typename Out>
__global__ void LayerNormKernel(const float* x, const float* weight, const float* bias,
                                float epsilon, uint32_t n, Out* out) {
  WaitForPrevious();
  LetNextStart();
  const size_t row = static_cast<size_t>(blockIdx.x) * n;
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[row + i];
  const float mean = BlockSum(sum) / static_cast<float>(n);
  float squares = 0.0f;
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
    const float difference = x[row + i] - mean;
    squares += difference * difference;
  }
  const float factor = rsqrtf(BlockSum(squares) / static_cast<float>(n) + epsilon);
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
    out[row + i] = FromFloat<Out>(weight[i] * ((x[row + i] - mean) * factor) + bias[i]);
  }
}

// The position of a row, or 0 for a row of no sequence.
__device__ uint32_t PositionOf(const SequenceTable& table, uint32_t row) {
  const uint32_t index = table.row_sequence[row];
  if (index == kNoSequence) return 0;
  const DeviceSequence sequence = table.sequences[index];
  return sequence.position + row - sequence.row;
}

__global__ void RotaryAnglesKernel(SequenceTable table, const float* frequencies, float factor,
                                   uint32_t half, float* cosines, float* sines) {
  WaitForPrevious();
  LetNextStart();
  const uint32_t row = blockIdx.x;
  const float position = static_cast<float>(PositionOf(table, row));
  for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
    // The product is rounded to float first; its sine is then nearly exact, as on the CPU.
    const double angle = position * frequencies[i];
    double sine = 0.0;
    double cosine = 0.0;
    sincos(angle, &sine, &cosine);
    cosines[static_cast<size_t>(row) * half + i] = static_cast<float>(cosine) * factor;
    sines[static_cast<size_t>(row) * half + i] = static_cast<float>(sine) * factor;
  }
}

// One block for a row; threads take pairs of elements of all heads.
template <typename T>
__global__ void RopeKernel(const float* cosines, const float* sines, uint32_t half, uint32_t heads,
                           uint32_t head_dim, T* x) {
  WaitForPrevious();
  LetNextStart();
  const size_t row = blockIdx.x;
  for (uint32_t i = threadIdx.x; i < heads * half; i += blockDim.x) {
    const uint32_t pair = i % half;
    T* const head = x + (row * heads + i / half) * head_dim;
    const float cosine = cosines[row * half + pair];
    const float sine = sines[row * half + pair];
    const float a = ToFloat(head[pair]);
    const float b = ToFloat(head[pair + half]);
    head[pair] = FromFloat<T>(a * cosine - b * sine);
    head[pair + half] = FromFloat<T>(b * cosine + a * sine);
  }
}

// A row of 8 bits: numbers and the scale that they are multiplied with, as QuantizeOp and
// QuantizeFp8Op on the CPU. One warp.
__device__ void StoreScaledRow(const float* values, uint32_t n, DType type, std::byte* to) {
  const uint32_t lane = threadIdx.x % kWarp;
  const bool fp8 = type == DType::kFp8;
  float highest = 0.0f;
  float zero = 0.0f;  // Unless a number is not finite: then the scale is none, either.
  for (uint32_t i = lane; i < n; i += kWarp) {
    highest = fmaxf(highest, fabsf(values[i]));
    zero += values[i] - values[i];
  }
  highest = WarpMax(highest) + WarpSum(zero);
  const float most = fp8 ? kE4m3Highest : 127.0f;
  const float inverse = RowFactor(highest, most);
  for (uint32_t i = lane; i < n; i += kWarp) {
    const float x = values[i] * inverse;
    to[i] = fp8 ? std::byte{__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)}
                : static_cast<std::byte>(__float2int_rn(x));
  }
  const float scale = highest / most;
  if (lane < sizeof(float)) to[n + lane] = reinterpret_cast<const std::byte*>(&scale)[lane];
}

constexpr uint32_t kHeadWarps = 4;

// Elements i.. of a row of the cache that has no scale.
template <uint32_t kCount>
__device__ void StoreKv(const float (&x)[kCount], DType type, std::byte* row, uint32_t i) {
  switch (type) {
    case DType::kF32:
      return StoreFloats<kCount>(x, reinterpret_cast<float*>(row) + i);
    case DType::kF16:
      return StoreFloats<kCount>(x, reinterpret_cast<__half*>(row) + i);
    case DType::kBF16:
      return StoreFloats<kCount>(x, reinterpret_cast<__nv_bfloat16*>(row) + i);
    case DType::kI8:
    case DType::kFp8:
      return;
  }
}

// One head of a row, taken by one warp, kCount elements at a time by each lane.
template <uint32_t kCount, typename T>
class HeadWarp {
 public:
  __device__ HeadWarp(const float* cosines, const float* sines, uint32_t half, uint32_t head_dim)
      : cosine_(cosines + static_cast<size_t>(blockIdx.x) * half),
        sine_(sines + static_cast<size_t>(blockIdx.x) * half),
        half_(half),
        n_(head_dim) {}

  // Calls store(i, elements) with all elements of a head, of which the first are rotated. They are
  // rounded to T: what the cache gets is what q and k would have been.
  template <typename Store>
  __device__ void Rotate(const T* head, uint32_t half, const Store& store) const {
    const uint32_t lane = threadIdx.x % kWarp;
    for (uint32_t pair = lane * kCount; pair < half; pair += kWarp * kCount) {
      float a[kCount], b[kCount], cosine[kCount], sine[kCount];
      LoadFloats<kCount>(head + pair, a);
      LoadFloats<kCount>(head + pair + half, b);
      LoadFloats<kCount>(cosine_ + pair, cosine);
      LoadFloats<kCount>(sine_ + pair, sine);
#pragma unroll
      for (uint32_t j = 0; j < kCount; ++j) {
        const float first = a[j] * cosine[j] - b[j] * sine[j];
        const float second = b[j] * cosine[j] + a[j] * sine[j];
        a[j] = ToFloat(FromFloat<T>(first));
        b[j] = ToFloat(FromFloat<T>(second));
      }
      store(pair, a);
      store(pair + half, b);
    }
    for (uint32_t i = 2 * half + lane * kCount; i < n_; i += kWarp * kCount) {
      float x[kCount];
      LoadFloats<kCount>(head + i, x);
      store(i, x);
    }
  }

  __device__ void RotateInPlace(T* head) const {
    Rotate(head, half_, [&](uint32_t i, const float(&x)[kCount]) { StoreFloats(x, head + i); });
  }

  // `shared` holds a head, if rows have a scale.
  __device__ void Write(const T* head, bool value, DType type, float* shared, std::byte* to) const {
    const uint32_t half = value ? 0 : half_;
    if (!HasScales(type)) {
      Rotate(head, half, [&](uint32_t i, const float(&x)[kCount]) { StoreKv(x, type, to, i); });
      return;
    }
    Rotate(head, half, [&](uint32_t i, const float(&x)[kCount]) { StoreFloats(x, shared + i); });
    __syncwarp();
    StoreScaledRow(shared, n_, type, to);
  }

 private:
  const float* const cosine_;
  const float* const sine_;
  const uint32_t half_;
  const uint32_t n_;
};

// One warp for each head of a row: first those of q, which are rotated in place, then K and V,
// which go to the cache.
template <uint32_t kCount, typename T>
__global__ void RopeWriteKvKernel(const float* cosines, const float* sines, uint32_t half,
                                  uint32_t heads, T* q, const T* k, const T* v, SequenceTable table,
                                  DevicePages pages, size_t row_bytes) {
  auto* const shared = reinterpret_cast<float*>(DynamicShared());
  WaitForPrevious();
  LetNextStart();
  const uint32_t n = pages.head_dim;
  const uint32_t row = blockIdx.x;
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t plane = blockIdx.y * kHeadWarps + warp;
  const HeadWarp<kCount, T> work(cosines, sines, half, n);
  if (plane < heads) {
    work.RotateInPlace(q + (static_cast<size_t>(row) * heads + plane) * n);
    return;
  }
  const uint32_t kv_plane = plane - heads;
  const uint32_t index = table.row_sequence[row];
  if (index == kNoSequence || kv_plane >= 2 * pages.kv_heads) return;
  const DeviceSequence sequence = table.sequences[index];
  const bool value = kv_plane >= pages.kv_heads;
  const uint32_t head = value ? kv_plane - pages.kv_heads : kv_plane;
  const size_t offset = KvRowOffset(pages, row_bytes, table.block_table + sequence.blocks, value,
                                    head, sequence.position + row - sequence.row);
  work.Write((value ? v : k) + (static_cast<size_t>(row) * pages.kv_heads + head) * n, value,
             pages.dtype, shared + warp * n, pages.data + offset);
}

__device__ float Silu(float x) { return x / (1.0f + __expf(-x)); }
__device__ float GeluTanh(float x) {
  return x / (1.0f + __expf((x + x * x * x * 0.044715f) * -1.5957691216057308f));
}

enum class Gate { kSilu, kGelu };

template <uint32_t kCount, Gate kGate, bool kMultiply, typename T>
__global__ void GateKernel(const T* gate, const T* up, size_t count, T* out) {
  WaitForPrevious();
  LetNextStart();
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x * kCount;
  for (size_t i = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCount; i < count;
       i += step) {
    float x[kCount];
    LoadFloats<kCount>(gate + i, x);
#pragma unroll
    for (uint32_t j = 0; j < kCount; ++j) x[j] = kGate == Gate::kSilu ? Silu(x[j]) : GeluTanh(x[j]);
    if constexpr (kMultiply) {
      float factor[kCount];
      LoadFloats<kCount>(up + i, factor);
#pragma unroll
      for (uint32_t j = 0; j < kCount; ++j) x[j] *= factor[j];
    }
    StoreFloats<kCount>(x, out + i);
  }
}

__global__ void SoftCapKernel(float cap, size_t count, float* x) {
  WaitForPrevious();
  LetNextStart();
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    x[i] = tanhf(x[i] / cap) * cap;
  }
}

__global__ void ScaleKernel(float factor, size_t count, float* x) {
  WaitForPrevious();
  LetNextStart();
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    x[i] *= factor;
  }
}

template <typename T>
__global__ void AddKernel(const T* y, size_t count, float* x) {
  WaitForPrevious();
  LetNextStart();
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    x[i] += ToFloat(y[i]);
  }
}

// The first n of each row of out [rows, stride] += bias [n].
template <typename T>
__global__ void AddBiasKernel(const T* bias, uint32_t n, uint32_t stride, T* out) {
  WaitForPrevious();
  LetNextStart();
  T* const row = out + static_cast<size_t>(blockIdx.x) * stride;
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
    row[i] = FromFloat<T>(ToFloat(row[i]) + ToFloat(bias[i]));
  }
}

__global__ void GatherRowsKernel(const uint32_t* x, const uint32_t* rows, uint32_t words,
                                 uint32_t* out) {
  WaitForPrevious();
  LetNextStart();
  const uint32_t* const from = x + static_cast<size_t>(rows[blockIdx.x]) * words;
  uint32_t* const to = out + static_cast<size_t>(blockIdx.x) * words;
  for (uint32_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

template <typename T>
__global__ void CombineRowsKernel(const T* x, const uint32_t* rows, const float* weights,
                                  uint32_t terms, uint32_t n, T* out) {
  WaitForPrevious();
  LetNextStart();
  const size_t token = blockIdx.x;
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
    float sum = 0.0f;
    for (size_t term = token * terms; term < (token + 1) * terms; ++term) {
      sum = fmaf(weights[term], ToFloat(x[static_cast<size_t>(rows[term]) * n + i]), sum);
    }
    out[token * n + i] = FromFloat<T>(sum);
  }
}

// Blocks for a loop over `count` numbers, `each` by a thread: not more than run at once.
dim3 LoopGrid(const Launch& launch, size_t count, uint32_t each) {
  const size_t wanted = (count + size_t{kThreads} * each - 1) / (size_t{kThreads} * each);
  return dim3(static_cast<uint32_t>(
      std::clamp<size_t>(wanted, 1, static_cast<size_t>(launch.multiprocessors) * 8)));
}

// Threads of a block that takes a row of n numbers, `each` by a thread and turn.
dim3 RowThreads(uint32_t n, uint32_t each) {
  const uint32_t wanted = (n / each + kWarp - 1) / kWarp * kWarp;
  return dim3(std::clamp(wanted, kWarp, 2 * kThreads));
}

template <typename X, typename Out>
cudaError_t StartRmsNorm(const Launch& launch, const X* x, const float* weight, float epsilon,
                         uint32_t rows, uint32_t n, Out* out) {
  if (n <= 256) {
    constexpr uint32_t kRows = kThreads / kWarp;
    return StartKernel(ShortRmsNormKernel<X, Out>, dim3((rows + kRows - 1) / kRows), dim3(kThreads),
                       0, launch, x, weight, epsilon, rows, n, out);
  }
  // The kernel writes to x only if it adds.
  X* const same = const_cast<X*>(x);
  const float* const none = nullptr;
  if (n % 4 == 0) {
    return StartKernel(RmsNormKernel<4, false, X, float, Out>, dim3(rows), RowThreads(n, 4), 0,
                       launch, same, none, weight, epsilon, n, out);
  }
  return StartKernel(RmsNormKernel<1, false, X, float, Out>, dim3(rows), RowThreads(n, 1), 0,
                     launch, same, none, weight, epsilon, n, out);
}

template <Gate kGate, bool kMultiply>
cudaError_t StartGate(const Launch& launch, const void* gate, const void* up, size_t count,
                      void* out, DType type) {
  if (count == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    constexpr uint32_t kCount = 16 / sizeof(T);
    const auto* const a = static_cast<const T*>(gate);
    const auto* const b = static_cast<const T*>(up);
    auto* const to = static_cast<T*>(out);
    if (count % kCount == 0) {
      return StartKernel(GateKernel<kCount, kGate, kMultiply, T>, LoopGrid(launch, count, kCount),
                         dim3(kThreads), 0, launch, a, b, count, to);
    }
    return StartKernel(GateKernel<1, kGate, kMultiply, T>, LoopGrid(launch, count, 1),
                       dim3(kThreads), 0, launch, a, b, count, to);
  });
}

}  // namespace

cudaError_t FindCode() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, ScaleKernel);
}

cudaError_t Embedding(const Launch& launch, const void* table, DType table_type, const int32_t* ids,
                      const int32_t* chosen, uint32_t rows, uint32_t n, float* out) {
  if (rows == 0) return cudaSuccess;
  return WithActivationType(table_type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(EmbeddingKernel<T>, dim3(rows), RowThreads(n, 4), 0, launch,
                       static_cast<const T*>(table), ids, chosen, n, out);
  });
}

cudaError_t RmsNorm(const Launch& launch, const void* x, DType x_type, const float* weight,
                    float epsilon, uint32_t rows, uint32_t n, void* out, DType out_type) {
  if (rows == 0) return cudaSuccess;
  return WithActivationType(x_type, [&](auto x_sample) {
    using X = decltype(x_sample);
    return WithActivationType(out_type, [&](auto out_sample) {
      using Out = decltype(out_sample);
      return StartRmsNorm(launch, static_cast<const X*>(x), weight, epsilon, rows, n,
                          static_cast<Out*>(out));
    });
  });
}

cudaError_t AddRmsNorm(const Launch& launch, const void* y, DType type, float* x,
                       const float* weight, float epsilon, uint32_t rows, uint32_t n, void* out) {
  if (rows == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    const auto* const added = static_cast<const T*>(y);
    auto* const to = static_cast<T*>(out);
    if (n % 4 == 0) {
      return StartKernel(RmsNormKernel<4, true, float, T, T>, dim3(rows), RowThreads(n, 4), 0,
                         launch, x, added, weight, epsilon, n, to);
    }
    return StartKernel(RmsNormKernel<1, true, float, T, T>, dim3(rows), RowThreads(n, 1), 0, launch,
                       x, added, weight, epsilon, n, to);
  });
}

cudaError_t LayerNorm(const Launch& launch, const float* x, const float* weight, const float* bias,
                      float epsilon, uint32_t rows, uint32_t n, void* out, DType out_type) {
  if (rows == 0) return cudaSuccess;
  return WithActivationType(out_type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(LayerNormKernel<T>, dim3(rows), RowThreads(n, 1), 0, launch, x, weight, bias,
                       epsilon, n, static_cast<T*>(out));
  });
}

cudaError_t RotaryAngles(const Launch& launch, const SequenceTable& table, const float* frequencies,
                         float factor, uint32_t half, float* cosines, float* sines) {
  if (table.rows == 0) return cudaSuccess;
  return StartKernel(RotaryAnglesKernel, dim3(table.rows), RowThreads(half, 1), 0, launch, table,
                     frequencies, factor, half, cosines, sines);
}

cudaError_t Rope(const Launch& launch, const float* cosines, const float* sines, uint32_t half,
                 uint32_t rows, uint32_t heads, uint32_t head_dim, void* x, DType type) {
  if (rows == 0 || half == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(RopeKernel<T>, dim3(rows), RowThreads(heads * half, 4), 0, launch, cosines,
                       sines, half, heads, head_dim, static_cast<T*>(x));
  });
}

cudaError_t RopeWriteKv(const Launch& launch, const float* cosines, const float* sines,
                        uint32_t half, uint32_t heads, void* q, const void* k, const void* v,
                        DType type, const SequenceTable& table, const DevicePages& pages) {
  if (table.rows == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    const uint32_t planes = (heads + 2 * pages.kv_heads + kHeadWarps - 1) / kHeadWarps;
    const size_t row_bytes = KvRowBytes(pages.dtype, pages.head_dim);
    const size_t shared =
        HasScales(pages.dtype) ? size_t{kHeadWarps} * pages.head_dim * sizeof(float) : 0;
    const bool twos = half % 2 == 0 && pages.head_dim % 2 == 0;
    const auto kernel = twos ? RopeWriteKvKernel<2, T> : RopeWriteKvKernel<1, T>;
    return StartKernel(kernel, dim3(table.rows, planes), dim3(kHeadWarps * kWarp), shared, launch,
                       cosines, sines, half, heads, static_cast<T*>(q), static_cast<const T*>(k),
                       static_cast<const T*>(v), table, pages, row_bytes);
  });
}

cudaError_t WriteKv(const Launch& launch, const void* k, const void* v, DType type,
                    const SequenceTable& table, const DevicePages& pages) {
  return RopeWriteKv(launch, nullptr, nullptr, 0, 0, nullptr, k, v, type, table, pages);
}

cudaError_t SiluMul(const Launch& launch, const void* gate, const void* up, size_t count, void* out,
                    DType type) {
  return StartGate<Gate::kSilu, true>(launch, gate, up, count, out, type);
}

cudaError_t Gelu(const Launch& launch, const void* x, size_t count, void* out, DType type) {
  return StartGate<Gate::kGelu, false>(launch, x, x, count, out, type);
}

cudaError_t GeluMul(const Launch& launch, const void* gate, const void* up, size_t count, void* out,
                    DType type) {
  return StartGate<Gate::kGelu, true>(launch, gate, up, count, out, type);
}

cudaError_t SoftCap(const Launch& launch, float cap, size_t count, float* x) {
  if (count == 0) return cudaSuccess;
  return StartKernel(SoftCapKernel, LoopGrid(launch, count, 1), dim3(kThreads), 0, launch, cap,
                     count, x);
}

cudaError_t Scale(const Launch& launch, float factor, size_t count, float* x) {
  if (count == 0) return cudaSuccess;
  return StartKernel(ScaleKernel, LoopGrid(launch, count, 1), dim3(kThreads), 0, launch, factor,
                     count, x);
}

cudaError_t Add(const Launch& launch, const void* y, DType y_type, size_t count, float* x) {
  if (count == 0) return cudaSuccess;
  return WithActivationType(y_type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(AddKernel<T>, LoopGrid(launch, count, 1), dim3(kThreads), 0, launch,
                       static_cast<const T*>(y), count, x);
  });
}

cudaError_t AddBias(const Launch& launch, const void* bias, uint32_t rows, uint32_t n,
                    uint32_t stride, void* out, DType type) {
  if (rows == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(AddBiasKernel<T>, dim3(rows), RowThreads(n, 4), 0, launch,
                       static_cast<const T*>(bias), n, stride, static_cast<T*>(out));
  });
}

cudaError_t GatherRows(const Launch& launch, const void* x, const uint32_t* rows, uint32_t count,
                       size_t row_bytes, void* out) {
  if (count == 0) return cudaSuccess;
  const auto words = static_cast<uint32_t>(row_bytes / sizeof(uint32_t));
  return StartKernel(GatherRowsKernel, dim3(count), RowThreads(words, 4), 0, launch,
                     static_cast<const uint32_t*>(x), rows, words, static_cast<uint32_t*>(out));
}

cudaError_t CombineRows(const Launch& launch, const void* x, DType type, const uint32_t* rows,
                        const float* weights, uint32_t tokens, uint32_t terms, uint32_t n,
                        void* out) {
  if (tokens == 0) return cudaSuccess;
  return WithActivationType(type, [&](auto sample) {
    using T = decltype(sample);
    return StartKernel(CombineRowsKernel<T>, dim3(tokens), RowThreads(n, 4), 0, launch,
                       static_cast<const T*>(x), rows, weights, terms, n, static_cast<T*>(out));
  });
}

}  // namespace baton::cuda
