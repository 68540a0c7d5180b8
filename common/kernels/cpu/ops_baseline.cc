// The CPU kernels' inner loops for any CPU. A fused multiply-add is a call of the C library where
// the processor has none: slow, but with the same bits as everywhere.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/cpu_packing.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 4
#define BATON_TARGET
#define BATON_INLINE BATON_TARGET __attribute__((always_inline)) inline

namespace baton {
namespace {

using F32Vec = Vector<float, BATON_WIDTH>::Type;
using U32Vec = Vector<uint32_t, BATON_WIDTH>::Type;
using I32Vec = Vector<int32_t, BATON_WIDTH>::Type;

constexpr size_t SumRows(size_t rows) { return rows >= 2 ? 2 : 1; }
constexpr size_t SumVectors(size_t /*rows*/) { return 2; }
constexpr size_t IntegerSumRows(size_t rows) { return rows >= 2 ? 2 : 1; }
constexpr size_t IntegerSumVectors(size_t /*rows*/) { return 2; }
constexpr size_t GroupSumRows(size_t rows) { return rows >= 2 ? 2 : 1; }
constexpr size_t GroupSumVectors(size_t /*rows*/) { return 1; }

inline F32Vec LoadF16(const uint16_t* from) {
  return F32Vec{F16ToF32(from[0]), F16ToF32(from[1]), F16ToF32(from[2]), F16ToF32(from[3])};
}
inline F32Vec LoadBf16(const uint16_t* from) {
  return F32Vec{Bf16ToF32(from[0]), Bf16ToF32(from[1]), Bf16ToF32(from[2]), Bf16ToF32(from[3])};
}
inline U32Vec LoadU8(const uint8_t* from) { return U32Vec{from[0], from[1], from[2], from[3]}; }
inline F32Vec LoadI8(const int8_t* from) {
  return F32Vec{static_cast<float>(from[0]), static_cast<float>(from[1]),
                static_cast<float>(from[2]), static_cast<float>(from[3])};
}
inline F32Vec Splat(float value) { return F32Vec{value, value, value, value}; }
inline F32Vec Fma(F32Vec a, F32Vec b, F32Vec c) {
  return F32Vec{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]),
                __builtin_fmaf(a[2], b[2], c[2]), __builtin_fmaf(a[3], b[3], c[3])};
}
inline I32Vec DotBytes(I32Vec sum, U32Vec w, int32_t x) {
  for (int byte = 0; byte < 4; ++byte) {
    sum += (I32Vec)((w >> (8 * byte)) & 0xffu) * static_cast<int8_t>(x >> (8 * byte));
  }
  return sum;
}
inline U32Vec InterleaveLow(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
inline U32Vec InterleaveHigh(U32Vec a, U32Vec b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsBaseline = {
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
