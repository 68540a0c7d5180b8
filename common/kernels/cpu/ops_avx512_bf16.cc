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

#include "common/kernels/cpu/avx512.inc"

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
