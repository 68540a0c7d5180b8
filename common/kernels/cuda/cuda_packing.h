// Packs weights for the GPU's Linear: rows as they are, in the type of activations; int8 and fp8 as
// numbers [outputs, inputs] and behind them, at a multiple of 16 bytes, the scales [outputs] in
// float32.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_PACKING_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_PACKING_H_

#include <cstddef>

#include "common/kernels/kernels.h"

namespace baton::cuda {

// What the GPU keeps weights of this form as: kI8 and kFp8 have scales.
inline DType StoredAs(WeightForm form, DType activations) {
  return form == WeightForm::kInt8  ? DType::kI8
         : form == WeightForm::kFp8 ? DType::kFp8
                                    : activations;
}

inline size_t ScalesOffset(size_t outputs, size_t inputs) {
  return (outputs * inputs + 15) / 16 * 16;
}

// The implementation of PackWeight.
absl::StatusOr<PackedWeight> PackWeightCuda(KernelContext& context, Device& device,
                                            const ConstTensorView& matrix, WeightFormat format);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_PACKING_H_
