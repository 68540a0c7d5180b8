// The CPU kernels' inner loops for AVX2 with FMA and F16C.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/cpu_packing.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 8
#define BATON_TARGET __attribute__((target("avx2,fma,f16c")))
#define BATON_INLINE BATON_TARGET __attribute__((always_inline)) inline

namespace baton {
namespace {

using F32Vec = Vector<float, BATON_WIDTH>::Type;
using U32Vec = Vector<uint32_t, BATON_WIDTH>::Type;
using I32Vec = Vector<int32_t, BATON_WIDTH>::Type;

// Twelve registers of sums of the sixteen that there are, for large tiles.
constexpr size_t SumRows(size_t rows) { return rows == 12 ? 6 : rows == 8 ? 4 : rows; }
constexpr size_t SumVectors(size_t rows) { return rows <= 2 ? 4 : 2; }
// Eight: the bytes of w and x take more room.
constexpr size_t IntegerSumRows(size_t rows) { return rows >= 4 ? 4 : rows; }
constexpr size_t IntegerSumVectors(size_t /*rows*/) { return 2; }
constexpr size_t GroupSumRows(size_t rows) { return rows >= 2 ? 2 : 1; }
constexpr size_t GroupSumVectors(size_t rows) { return rows >= 2 ? 1 : 2; }

BATON_INLINE F32Vec LoadF16(const uint16_t* from) {
  return (F32Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
BATON_INLINE F32Vec LoadBf16(const uint16_t* from) {
  const __m256i wide =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return (F32Vec)((U32Vec)wide << 16);
}
BATON_INLINE U32Vec LoadU8(const uint8_t* from) {
  return (U32Vec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
BATON_INLINE F32Vec LoadI8(const int8_t* from) {
  return (F32Vec)_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
BATON_INLINE F32Vec Splat(float value) { return (F32Vec)_mm256_set1_ps(value); }
BATON_INLINE F32Vec Fma(F32Vec a, F32Vec b, F32Vec c) {
  return (F32Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
// vpmaddubsw saturates at 16 bits. So even and odd bytes are widened first, and pairs are added at
// 32 bits.
BATON_INLINE I32Vec DotBytes(I32Vec sum, U32Vec w, int32_t x) {
  const __m256i bytes = _mm256_set1_epi32(x);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
  const __m256i x_odd = _mm256_srai_epi16(bytes, 8);
  const __m256i w_even = (__m256i)(w & 0x00ff00ffu);
  const __m256i w_odd = _mm256_srli_epi16((__m256i)w, 8);
  return sum + (I32Vec)_mm256_madd_epi16(w_even, x_even) + (I32Vec)_mm256_madd_epi16(w_odd, x_odd);
}
BATON_INLINE U32Vec InterleaveLow(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
BATON_INLINE U32Vec InterleaveHigh(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsAvx2 = {
    .linear_f32 = LinearOp<F32Weight>,
    .linear_bf16 = LinearOp<Bf16Weight>,
    .linear_f16 = LinearOp<F16Weight>,
    .linear_fp8 = LinearFp8Op,
    .linear_pairs = LinearPairsOp,
    .linear_int8 = LinearInt8Op,
    .linear_int4 = LinearInt4Op,
    .pack_pairs = PackPairsOp,
    .pair_bytes = sizeof(Pair),
    .quantize = QuantizeOp,
    .quantize_fp8 = QuantizeFp8Op,
    .attention = AttentionOp,
    .attention_part = AttentionPartOp,
    .attention_merge = AttentionMergeOp,
    .rms_norm = RmsNormOp,
    .layer_norm = LayerNormOp,
    .silu_mul = SiluMulOp,
    .gelu = GeluOp,
    .gelu_mul = GeluMulOp,
    .add = AddOp,
    .add_scaled = AddScaledOp,
    .soft_cap = SoftCapOp,
    .exp = ExpOp,
    .tanh = TanhOp,
};

}  // namespace baton

#endif  // defined(__x86_64__)
