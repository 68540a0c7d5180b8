// Is common/kernels/cuda/instructions.cuh when kernels are compiled for the CPU: what the
// instructions do, by the tables of the PTX ISA. See CMakeLists.txt.
#ifndef BATON_TESTS_CUDA_EMULATOR_INSTRUCTIONS_CUH_
#define BATON_TESTS_CUDA_EMULATOR_INSTRUCTIONS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/tensor/number_formats.h"

namespace baton::cuda {

// ---- From one kernel to the next ---------------------------------------------------------------

inline void WaitForPrevious() {}
inline void LetNextStart() {}

// ---- Memory ------------------------------------------------------------------------------------

inline uint4 LoadOnce(const std::byte* from) { return *reinterpret_cast<const uint4*>(from); }
inline uint4 LoadOnceOfLine(const std::byte* from) { return LoadOnce(from); }

inline std::byte* DynamicShared() { return emulation::DynamicSharedMemory(); }

// Not zero, so that who takes an address for an offset is found out.
constexpr uint32_t kSharedBase = 1024;

inline uint32_t SharedAddress(const void* shared) {
  return kSharedBase +
         static_cast<uint32_t>(static_cast<const std::byte*>(shared) - DynamicShared());
}

// 16 bytes of shared memory.
inline std::byte* SharedChunk(uint32_t address) {
  if (address % 16 != 0) emulation::KernelFailure("an address is not that of a chunk");
  return emulation::DynamicSharedMemory(address - kSharedBase, 16);
}

// As late as it may be: when the thread waits for it.
inline void StartCopy(uint32_t shared, const std::byte* global, bool valid) {
  emulation::StartCopy(SharedChunk(shared), valid ? global : nullptr, 16);
}
inline void WaitForCopies() { emulation::FinishCopies(); }

// ---- Tensor cores ------------------------------------------------------------------------------

// Lane 4 g + c gets elements 2 c and 2 c + 1 of row g of each matrix.
inline void LoadMatrices(uint32_t (&to)[4], uint32_t shared) {
  const emulation::WarpView rows =
      emulation::Exchange(emulation::WarpOperation::kMatrices, SharedChunk(shared), 16);
  const uint32_t lane = emulation::ThisLane();
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    to[matrix] = rows.Of<uint32_t[4]>(8 * matrix + lane / 4)[lane % 4];
  }
}

// Lane 4 g + c gets elements g of rows 2 c and 2 c + 1.
inline void LoadTransposed(uint32_t (&to)[4], uint32_t shared) {
  const emulation::WarpView rows =
      emulation::Exchange(emulation::WarpOperation::kMatrices, SharedChunk(shared), 16);
  const uint32_t column = emulation::ThisLane() / 4;
  const uint32_t row = emulation::ThisLane() % 4 * 2;
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    const uint32_t low = rows.Of<uint16_t[8]>(8 * matrix + row)[column];
    const uint32_t high = rows.Of<uint16_t[8]>(8 * matrix + row + 1)[column];
    to[matrix] = low | high << 16;
  }
}

inline float NumberOf(uint32_t bits, __nv_bfloat16) {
  return Bf16ToF32(static_cast<uint16_t>(bits));
}
inline float NumberOf(uint32_t bits, __half) { return F16ToF32(static_cast<uint16_t>(bits)); }

// What a lane has of the operands of a product, "Matrix Fragments for mma.m16n8k16".
struct alignas(emulation::kSlotBytes) ProductOperands {
  float a[4][2];  // Rows g, g + 8, g, g + 8; elements 2 c and 2 c + 1, those of the last two 8 on.
  float b[2][2];  // Of column g: elements 2 c and 2 c + 1, those of the last 8 on.
};

template <typename T>
void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T type) {
  ProductOperands mine;
  for (uint32_t i = 0; i < 4; ++i) {
    mine.a[i][0] = NumberOf(a[i] & 0xffff, type);
    mine.a[i][1] = NumberOf(a[i] >> 16, type);
  }
  const uint32_t b[2] = {b0, b1};
  for (uint32_t i = 0; i < 2; ++i) {
    mine.b[i][0] = NumberOf(b[i] & 0xffff, type);
    mine.b[i][1] = NumberOf(b[i] >> 16, type);
  }
  const ProductOperands* const lanes =
      emulation::Exchange(emulation::WarpOperation::kProduct, &mine, sizeof(mine))
          .All<ProductOperands>();
  const uint32_t g = emulation::ThisLane() / 4;
  const uint32_t c = emulation::ThisLane() % 4;
  float products[4] = {};
  for (uint32_t k = 0; k < 8; ++k) {  // Elements 2 k and 2 k + 1.
    for (uint32_t i = 0; i < 4; ++i) {
      // Row g or g + 8, column 2 c or 2 c + 1.
      const auto& row = lanes[4 * g + k % 4].a[k / 4 * 2 + i / 2];
      const auto& column = lanes[4 * (2 * c + i % 2) + k % 4].b[k / 4];
      products[i] += row[0] * column[0] + row[1] * column[1];
    }
  }
  for (uint32_t i = 0; i < 4; ++i) sum[i] += products[i];
}

inline uint32_t Transposed(uint32_t pair) {
  const emulation::WarpView rows =
      emulation::Exchange(emulation::WarpOperation::kTransposition, &pair, sizeof(pair));
  const uint32_t column = emulation::ThisLane() / 4;
  uint32_t of_column = 0;
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t row = emulation::ThisLane() % 4 * 2 + i;
    of_column |= uint32_t{rows.Of<uint16_t[2]>(4 * row + column / 2)[column % 2]} << 16 * i;
  }
  return of_column;
}

// ---- Numbers -----------------------------------------------------------------------------------

inline float Exp2(float x) { return std::exp2(x); }

}  // namespace baton::cuda

#endif  // BATON_TESTS_CUDA_EMULATOR_INSTRUCTIONS_CUH_
