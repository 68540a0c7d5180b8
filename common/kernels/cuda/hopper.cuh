// Instructions that only Hopper has: barriers in shared memory, the copy engine, and products by a
// warpgroup of 128 threads (PTX ISA, "mbarrier", "cp.async.bulk.tensor", "wgmma"). Addresses are
// those of shared memory.
#ifndef BATON_COMMON_KERNELS_CUDA_HOPPER_CUH_
#define BATON_COMMON_KERNELS_CUDA_HOPPER_CUH_

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "common/kernels/cuda/device_code.cuh"

namespace baton::cuda {

// The widest row that the copy engine swizzles: chunk c of row r lies at c ^ (r % 8).
constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kSwizzleBytes = 1024;  // The pattern repeats after 8 rows.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// ---- Barriers and copies ----

__device__ __forceinline__ void InitBarrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and makes the barrier wait for copies of so many bytes as well.
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void WaitFor(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void SyncNamed(uint32_t barrier, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void ArriveNamed(uint32_t barrier, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap& map, uint32_t x, uint32_t y,
                                        uint32_t z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap& map, uint32_t x, uint32_t y,
                                        uint32_t z, uint32_t w, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void PrefetchMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  uint32_t packed;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

// ---- Warpgroup products ----

// What a warpgroup's registers hold must be there before its instructions read it.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from using registers earlier than here.
template <size_t kCount>
__device__ __forceinline__ void KeepBehind(float (&x)[kCount]) {
#pragma unroll
  for (size_t i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

// A matrix in shared memory: swizzled rows of 128 bytes, groups of 8 rows one after the other.
// `leading_bytes`: from a half to the next, where the long side of the rows is that of the product
// (values); without meaning where it is that of the sum (queries and keys).
constexpr uint64_t kDescriptorSwizzle128 = uint64_t{1} << 62;
constexpr uint32_t kLeadingUnused = 16;
constexpr uint32_t kSumStepBytes = 16 * 2;            // 16 elements on, within rows.
constexpr uint32_t kTokenStepBytes = 16 * kRowBytes;  // 16 rows on.

__device__ __forceinline__ uint64_t Descriptor(uint32_t address, uint32_t leading_bytes) {
  return kDescriptorSwizzle128 | uint64_t{kSwizzleBytes >> 4} << 32 |
         uint64_t{leading_bytes >> 4} << 16 | (address & 0x3ffff) >> 4;
}

#define BATON_8(x, i)                                                                         \
  "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), \
      "+f"(x[i + 6]), "+f"(x[i + 7])
#define BATON_32(x, i) BATON_8(x, i), BATON_8(x, i + 8), BATON_8(x, i + 16), BATON_8(x, i + 24)
#define BATON_NAMES_32                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
  " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define BATON_NAMES_64                                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"           \
  " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
  " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
  " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// scores [64, 128] = or += queries [64, 16] keys [128, 16]^T.
#define BATON_MULTIPLY_KEYS(types)                                            \
  asm volatile(                                                               \
      "{\n"                                                                   \
      ".reg .pred add;\n"                                                     \
      "setp.ne.b32 add, %66, 0;\n"                                            \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " " BATON_NAMES_64 \
      ", %64, %65, add, 1, 1, 0, 0;\n"                                        \
      "}\n"                                                                   \
      : BATON_32(scores, 0), BATON_32(scores, 32)                             \
      : "l"(queries), "l"(keys), "r"(add))

template <typename T>
__device__ __forceinline__ void MultiplyKeys(float (&scores)[64], uint64_t queries, uint64_t keys,
                                             int add) {
  if constexpr (std::is_same_v<T, __half>) {
    BATON_MULTIPLY_KEYS("f16.f16");
  } else {
    BATON_MULTIPLY_KEYS("bf16.bf16");
  }
}

// out [64, 128] += weights [64, 16] values [16, 128]; the last 1: values lie transposed.
#define BATON_MULTIPLY_VALUES_128(types)                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." types " " BATON_NAMES_64 \
               ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                            \
               : BATON_32(out, 0), BATON_32(out, 32)                                   \
               : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(values))
#define BATON_MULTIPLY_VALUES_64(types)                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." types " " BATON_NAMES_32 \
               ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                           \
               : BATON_32(out, 0)                                                     \
               : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(values))

template <typename T>
__device__ __forceinline__ void MultiplyValues(float (&out)[64], const uint32_t* weights,
                                               uint64_t values) {
  if constexpr (std::is_same_v<T, __half>) {
    BATON_MULTIPLY_VALUES_128("f16.f16");
  } else {
    BATON_MULTIPLY_VALUES_128("bf16.bf16");
  }
}

template <typename T>
__device__ __forceinline__ void MultiplyValues(float (&out)[32], const uint32_t* weights,
                                               uint64_t values) {
  if constexpr (std::is_same_v<T, __half>) {
    BATON_MULTIPLY_VALUES_64("f16.f16");
  } else {
    BATON_MULTIPLY_VALUES_64("bf16.bf16");
  }
}

#undef BATON_MULTIPLY_KEYS
#undef BATON_MULTIPLY_VALUES_128
#undef BATON_MULTIPLY_VALUES_64
#undef BATON_NAMES_32
#undef BATON_NAMES_64
#undef BATON_32
#undef BATON_8

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_HOPPER_CUH_
