// The CPU kernels' inner loops for AVX2 with F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 8
#define BATON_TARGET __attribute__((target("avx2,f16c")))

namespace baton {
namespace {

// Twelve registers of sums of the sixteen that there are.
constexpr size_t kTileRows = 3;
constexpr size_t kTileColumns = 2;

BATON_TARGET __attribute__((always_inline)) inline Vector<float, 8>::Type LoadF16(
    const uint16_t* from) {
  return (Vector<float, 8>::Type)_mm256_cvtph_ps(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

BATON_TARGET __attribute__((always_inline)) inline Vector<float, 8>::Type LoadBf16(
    const uint16_t* from) {
  const __m256i wide =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return (Vector<float, 8>::Type)((Vector<uint32_t, 8>::Type)wide << 16);
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsAvx2 = {
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
