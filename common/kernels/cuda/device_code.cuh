// What the kernels share: starting one so that it overlaps the end of the one before, numbers of
// the three types of activations, sums over a warp.
#ifndef BATON_COMMON_KERNELS_CUDA_DEVICE_CODE_CUH_
#define BATON_COMMON_KERNELS_CUDA_DEVICE_CODE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.h"

namespace baton::cuda {

constexpr uint32_t kWarp = 32;

// Starts a kernel whose blocks may take their places while those of the kernel before it still run
// (programmatic dependent launch). Every kernel therefore calls WaitForPrevious() before it touches
// memory that an earlier one wrote, or writes memory that an earlier one reads.
template <typename... Parameters, typename... Arguments>
cudaError_t StartKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                        const Launch& launch, Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.compute_capability >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(static_cast<Arguments&&>(arguments))...);
}

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__half x) { return __half2float(x); }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline __half FromFloat<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}

// A number of E4M3, but for NaN: see Fp8Cache of the CPU's attention.
__device__ inline float E4m3ToFloat(uint8_t bits) {
  const float magnitude = __uint_as_float((bits & 0x7fu) << 20) * 0x1p120f;
  return __uint_as_float(__float_as_uint(magnitude) | (bits & 0x80u) << 24);
}

// Number `i` of a row of the cache; what stands behind numbers of 8 bits multiplies it.
__device__ inline float KvNumber(const std::byte* row, uint32_t i, DType type, float scale) {
  switch (type) {
    case DType::kF32:
      return reinterpret_cast<const float*>(row)[i];
    case DType::kF16:
      return ToFloat(reinterpret_cast<const __half*>(row)[i]);
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const __nv_bfloat16*>(row)[i]);
    case DType::kFp8:
      return E4m3ToFloat(reinterpret_cast<const uint8_t*>(row)[i]) * scale;
    case DType::kI8:
      break;
  }
  return static_cast<float>(reinterpret_cast<const int8_t*>(row)[i]) * scale;
}

// It need not be aligned.
__device__ inline float KvScale(const std::byte* row, uint32_t head_dim, DType type) {
  float scale = 1.0f;
  if (HasScales(type)) memcpy(&scale, row + head_dim, sizeof(scale));
  return scale;
}

// K (value = false) or V of the token at `position`: KvPages::OffsetOf.
__device__ inline size_t KvRowOffset(const DevicePages& pages, size_t row_bytes,
                                     const uint32_t* blocks, bool value, uint32_t kv_head,
                                     uint32_t position) {
  const uint32_t plane = (value ? pages.kv_heads : 0) + kv_head;
  return blocks[position / pages.block_tokens] * pages.block_bytes +
         (static_cast<size_t>(plane) * pages.block_tokens + position % pages.block_tokens) *
             row_bytes;
}

// Calls body(T{}) with the type of activations that `type` names.
template <typename Body>
cudaError_t WithActivationType(DType type, const Body& body) {
  switch (type) {
    case DType::kF32:
      return body(float{});
    case DType::kF16:
      return body(__half{});
    case DType::kBF16:
      return body(__nv_bfloat16{});
    case DType::kI8:
    case DType::kFp8:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_DEVICE_CODE_CUH_
