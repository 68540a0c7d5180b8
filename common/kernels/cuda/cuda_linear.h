// The GPU's Linear: few rows at the speed of reading the weights, many by cuBLASLt.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_

#include <span>

#include "common/kernels/kernels.h"

namespace baton::cuda {

void GroupedLinearCuda(KernelContext& context, const ConstTensorView& x,
                       std::span<const LinearGroup> groups);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_LINEAR_H_
