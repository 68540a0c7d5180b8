// The GPU's Linear: few rows at the speed of reading the weights, many by cuBLASLt.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_

#include <span>

#include "common/kernels/kernels.h"

namespace baton::cuda {

// What products of many rows need to widen a weight of 8 bits, piece by piece.
size_t WidenedWeightBytes(size_t outputs, size_t inputs, DType activations);

void GroupedLinearCuda(KernelContext& context, const ConstTensorView& x,
                       std::span<const LinearGroup> groups);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_
