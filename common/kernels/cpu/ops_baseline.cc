// The CPU kernels' inner loops for any CPU.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/base/deterministic_math.h"
#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/cpu/vector.h"
#include "common/tensor/number_formats.h"

#define BATON_WIDTH 4
#define BATON_TARGET

namespace baton {
namespace {

// Eight registers of sums of the sixteen that SSE2 has.
constexpr size_t kTileRows = 2;
constexpr size_t kTileColumns = 1;

inline Vector<float, 4>::Type LoadF16(const uint16_t* from) {
  return Vector<float, 4>::Type{F16ToF32(from[0]), F16ToF32(from[1]), F16ToF32(from[2]),
                                F16ToF32(from[3])};
}

inline Vector<float, 4>::Type LoadBf16(const uint16_t* from) {
  return Vector<float, 4>::Type{Bf16ToF32(from[0]), Bf16ToF32(from[1]), Bf16ToF32(from[2]),
                                Bf16ToF32(from[3])};
}

#include "common/kernels/cpu/ops.inc"

}  // namespace

const CpuOps kCpuOpsBaseline = {
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
