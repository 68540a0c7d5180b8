// The CPU kernels' inner loops for AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 16
#define BATON_TARGET __attribute__((target("avx512f")))

namespace baton {
namespace {

// Twenty-four registers of sums of the thirty-two that there are.
constexpr size_t kTileRows = 6;
constexpr size_t kTileColumns = 4;

// The masked form, because g++ 12 warns about the plain one.
BATON_TARGET __attribute__((always_inline)) inline Vector<float, 16>::Type LoadF16(
    const uint16_t* from) {
  return (Vector<float, 16>::Type)_mm512_maskz_cvtph_ps(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// g++ 12 widens a vector of 16 bits in two halves if it is left to itself.
BATON_TARGET __attribute__((always_inline)) inline Vector<float, 16>::Type LoadBf16(
    const uint16_t* from) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return (Vector<float, 16>::Type)((Vector<uint32_t, 16>::Type)wide << 16);
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsAvx512 = {
    .linear_f32 = LinearOp<F32Weight>,
    .linear_bf16 = LinearOp<Bf16Weight>,
    .linear_f16 = LinearOp<F16Weight>,
    .attention = AttentionOp,
    .rms_norm = RmsNormOp,
    .silu_mul = SiluMulOp,
    .add = AddOp,
    .exp = ExpOp,
};

}  // namespace baton

#endif  // defined(__x86_64__)
