// Operands of the tensor cores' products of 16 x 16 x 8 (MultiplyAdd).
#ifndef BATON_COMMON_KERNELS_CUDA_TENSOR_CORES_CUH_
#define BATON_COMMON_KERNELS_CUDA_TENSOR_CORES_CUH_

#include <cstdint>

#include "common/kernels/cuda/device_code.cuh"

namespace baton::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// Two numbers in a register, the first in the lower half.
__device__ inline uint32_t PackPair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ inline uint32_t PackPair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Four numbers of 8 bits as two pairs of T, exactly.
__device__ inline uint2 WidenBytes(uint32_t bytes, __half) {
  // 1024 + u, for u in [0, 256), has u in its last bits.
  const uint32_t biased = bytes ^ 0x80808080u;
  const __half2 offset = __half2half2(__float2half_rn(1152.0f));
  uint32_t low = __byte_perm(biased, 0x64646464u, 0x4140);
  uint32_t high = __byte_perm(biased, 0x64646464u, 0x4342);
  const __half2 first = __hsub2(reinterpret_cast<__half2&>(low), offset);
  const __half2 second = __hsub2(reinterpret_cast<__half2&>(high), offset);
  return make_uint2(reinterpret_cast<const uint32_t&>(first),
                    reinterpret_cast<const uint32_t&>(second));
}
__device__ inline uint2 WidenBytes(uint32_t bytes, __nv_bfloat16) {
  // 2^23 + u has u in its last bits.
  const uint32_t biased = bytes ^ 0x80808080u;
  float numbers[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    numbers[i] = __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
  }
  const __nv_bfloat162 first = __floats2bfloat162_rn(numbers[0], numbers[1]);
  const __nv_bfloat162 second = __floats2bfloat162_rn(numbers[2], numbers[3]);
  return make_uint2(reinterpret_cast<const uint32_t&>(first),
                    reinterpret_cast<const uint32_t&>(second));
}

// A number of E4M3, as it lies in memory.
struct Fp8 {
  uint8_t bits;
};

// Four numbers of E4M3 as two pairs of T, exactly, each a 1 / E4m3Shrink(T)-th of itself: the bits
// of one format lie in the other as they are, but for the exponent's bias.
__device__ constexpr float E4m3Shrink(__half) { return 0x1p8f; }
__device__ constexpr float E4m3Shrink(__nv_bfloat16) { return 1.0f; }
template <uint32_t kDown>  // Where the exponent ends.
__device__ inline uint2 SpreadE4m3(uint32_t bytes) {
  // Each into the upper half of 16 bits, then all but the sign to its place.
  const uint32_t low = __byte_perm(bytes, 0, 0x1404);
  const uint32_t high = __byte_perm(bytes, 0, 0x3424);
  return make_uint2((low & 0x80008000u) | ((low & 0x7f007f00u) >> kDown),
                    (high & 0x80008000u) | ((high & 0x7f007f00u) >> kDown));
}
__device__ inline uint2 WidenE4m3(uint32_t bytes, __half) { return SpreadE4m3<1>(bytes); }
// 2^-120 of a number would make products that float32 cannot hold.
__device__ inline uint2 WidenE4m3(uint32_t bytes, __nv_bfloat16) {
  uint2 spread = SpreadE4m3<4>(bytes);
  const __nv_bfloat162 grow = __float2bfloat162_rn(0x1p120f);
  const __nv_bfloat162 first = __hmul2(reinterpret_cast<__nv_bfloat162&>(spread.x), grow);
  const __nv_bfloat162 second = __hmul2(reinterpret_cast<__nv_bfloat162&>(spread.y), grow);
  return make_uint2(reinterpret_cast<const uint32_t&>(first),
                    reinterpret_cast<const uint32_t&>(second));
}

__device__ inline uint32_t Word(const uint4& four, uint32_t i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_TENSOR_CORES_CUH_
