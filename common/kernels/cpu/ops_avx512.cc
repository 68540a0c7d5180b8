// The CPU kernels' inner loops for AVX-512 with VNNI.
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

#define BATON_WIDTH 16
#define BATON_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define BATON_INLINE BATON_TARGET __attribute__((always_inline)) inline

namespace baton {
namespace {

using F32Vec = Vector<float, BATON_WIDTH>::Type;
using U32Vec = Vector<uint32_t, BATON_WIDTH>::Type;
using I32Vec = Vector<int32_t, BATON_WIDTH>::Type;

#include "common/kernels/cpu/avx512.inc"

constexpr size_t IntegerSumRows(size_t rows) { return rows; }
constexpr size_t IntegerSumVectors(size_t /*rows*/) { return 2; }
// Integer and float sums at once.
constexpr size_t GroupSumRows(size_t rows) { return rows == 12 ? 6 : rows == 8 ? 4 : rows; }
constexpr size_t GroupSumVectors(size_t /*rows*/) { return 2; }

BATON_INLINE I32Vec DotBytes(I32Vec sum, U32Vec w, int32_t x) {
  return (I32Vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
BATON_INLINE U32Vec InterleaveLow(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
BATON_INLINE U32Vec InterleaveHigh(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsAvx512 = {
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
