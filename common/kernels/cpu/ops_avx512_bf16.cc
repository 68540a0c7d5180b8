// The CPU kernels' inner loops for AVX-512 with BF16: those that have an instruction of their own.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/cpu_packing.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 16
#define BATON_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define BATON_INLINE BATON_TARGET __attribute__((always_inline)) inline
#define BATON_NATIVE_PAIRS

namespace baton {
namespace {

using F32Vec = Vector<float, BATON_WIDTH>::Type;
using U32Vec = Vector<uint32_t, BATON_WIDTH>::Type;

// As for AVX-512.
constexpr size_t kSumRows(size_t rows) { return rows; }
constexpr size_t kSumVectors(size_t /*rows*/) { return 2; }

BATON_INLINE F32Vec LoadF16(const uint16_t* from) {
  return (F32Vec)_mm512_maskz_cvtph_ps(0xffff,
                                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
BATON_INLINE F32Vec LoadBf16(const uint16_t* from) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return (F32Vec)((U32Vec)wide << 16);
}
BATON_INLINE F32Vec Splat(float value) { return (F32Vec)_mm512_set1_ps(value); }
BATON_INLINE F32Vec Fma(F32Vec a, F32Vec b, F32Vec c) {
  return (F32Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
BATON_INLINE F32Vec DotPair(F32Vec sum, U32Vec w, uint32_t x) {
  return (F32Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w,
                                  (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(x)));
}

// clang-format off
#include "common/kernels/cpu/simd.inc"
#include "common/kernels/cpu/panel.inc"
#include "common/kernels/cpu/pair_linear.inc"
// clang-format on

}  // namespace

void UseNativePairs(CpuOps* ops) {
  ops->linear_pairs = LinearPairsOp;
  ops->pack_pairs = PackPairsOp;
  ops->pair_bytes = sizeof(Pair);
}

}  // namespace baton

#endif  // defined(__x86_64__)
