// The instructions that CUDA C++ has no words for, as functions (PTX ISA). All GPUs from Ampere on
// have them; hopper.cuh has those of Hopper alone.
//
// tests/cuda_emulator puts another file in the place of this one.
#ifndef BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH_
#define BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace baton::cuda {

// ---- From one kernel to the next ---------------------------------------------------------------

// Until all that ran before on the stream is complete and visible.
__device__ inline void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next kernel may take places that are free.
__device__ inline void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Memory ------------------------------------------------------------------------------------

// 16 bytes that are constant for the kernel and that nobody reads a second time.
__device__ inline uint4 LoadOnce(const std::byte* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}
// What follows, up to 128 bytes, is wanted as well.
__device__ inline uint4 LoadOnceOfLine(const std::byte* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// The shared memory that the launch asked for.
__device__ inline std::byte* DynamicShared() {
  extern __shared__ __align__(128) std::byte dynamic_shared[];
  return dynamic_shared;
}

// As the instructions below take it.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes to shared memory in the background; writes zeros and reads nothing if not
// `valid`.
__device__ inline void StartCopy(uint32_t shared, const std::byte* global, bool valid) {
  const uint32_t bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}

// Until this thread's copies are complete.
__device__ inline void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- Tensor cores ------------------------------------------------------------------------------

// Four matrices of 8 x 8 numbers; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void LoadMatrices(uint32_t (&to)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared));
}

__device__ inline void LoadTransposed(uint32_t (&to)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared));
}

// sum [16, 8] += a [16, 16] b [16, 8].
__device__ inline void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1, __nv_bfloat16 /*type*/) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1, __half /*type*/) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of an 8 x 8 matrix, lane 4 g + c has numbers 2 c and 2 c + 1 of row g: then of column g.
__device__ inline uint32_t Transposed(uint32_t pair) {
  uint32_t of_column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(of_column) : "r"(pair));
  return of_column;
}

// ---- Numbers -----------------------------------------------------------------------------------

// 2^x, to about 2^-22 of it.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_INSTRUCTIONS_CUH_
