// The GPU's implementation of kernels.h. Part of libbaton_cuda.so.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_KERNELS_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_KERNELS_H_

#include "common/kernels/kernel_table.h"

namespace baton::cuda {

const KernelTable& CudaKernels();

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_KERNELS_H_
