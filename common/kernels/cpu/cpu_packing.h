// Packs weights for the CPU's Linear, and activations on every call.
//
// Weights are cut into panels of kPanelColumns outputs; outputs that are missing in the last one
// are zeros. A panel lies in the order in which it is read:
//   floats  [input][output], each as it is stored
//   pairs   [input / 2][output][2 inputs], bfloat16, inputs filled up with zeros
//   fp8     [input][output]; behind all panels the scales [output], float32
//   int8    [input / 4][output][4 inputs], inputs filled up with zeros; behind all panels the
//           scales [output], float32
//   int4    [group][(input / 8)[output][4 bytes], then scales [output] in bfloat16]; a byte holds
//           inputs i (low half) and i + 4 (high half)
#ifndef BATON_COMMON_KERNELS_CPU_CPU_PACKING_H_
#define BATON_COMMON_KERNELS_CPU_CPU_PACKING_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "common/kernels/cpu/cpu_ops.h"
#include "common/kernels/kernels.h"
#include "common/tensor/number_formats.h"

namespace baton {

// Where the parts of a packed weight lie.
struct PanelLayout {
  size_t panel_count = 0;
  size_t panel_bytes = 0;
  size_t padded_inputs = 0;
  size_t scales_offset = 0;  // fp8, int8.
  size_t bytes = 0;
};
PanelLayout PanelLayoutOf(const WeightFormat& format, size_t outputs, size_t inputs);

// A number of a product of pairs, as bits of bfloat16: rounded to nearest, ties to even, and zero
// below 2^-49. So products are multiples of 2^-112, and sums of them are never subnormal, which the
// processors' instruction would take for zero.
constexpr uint32_t kPairLeastBits = (127u - 49u) << 23;
inline uint16_t RoundToPair(float value) {
  const uint32_t magnitude = std::bit_cast<uint32_t>(value) & 0x7fffffffu;
  return magnitude < kPairLeastBits ? uint16_t{0} : F32ToBf16(value);
}

// The implementation of PackWeight.
absl::StatusOr<PackedWeight> PackWeightCpu(KernelContext& context, Device& device,
                                           const ConstTensorView& matrix, WeightFormat format);

// Packs rows [first, first + count), a tile, of x [rows, k] for float weights.
void PackTile(const float* x, size_t k, size_t first, size_t count, float* packed);

// Activations for integer weights; see LinearTask.
struct QuantizedRows {
  int8_t* bytes = nullptr;        // [rows * byte_count * padded]
  float* scales = nullptr;        // [rows]
  int32_t* sums = nullptr;        // [rows * byte_count], for int8 weights.
  int32_t* group_sums = nullptr;  // [rows * byte_count * groups], for int4 weights.
  size_t byte_count = 1;
  size_t padded = 0;  // k, rounded up to whole groups.
};
// Packs a tile of byte rows [first, first + count). `scratch` holds byte_count * padded bytes.
void QuantizeTile(const CpuOps& ops, const float* x, size_t k, size_t first, size_t count,
                  const QuantizedRows& to, int8_t* scratch);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_CPU_PACKING_H_
