// Divides a matrix product into tasks for the threads. The loops are in CpuOps.
#ifndef BATON_COMMON_KERNELS_CPU_CPU_LINEAR_H_
#define BATON_COMMON_KERNELS_CPU_CPU_LINEAR_H_

#include <span>

#include "common/kernels/kernels.h"

namespace baton {

void GroupedLinearCpu(KernelContext& context, const ConstTensorView& x,
                      std::span<const LinearGroup> groups);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_CPU_LINEAR_H_
