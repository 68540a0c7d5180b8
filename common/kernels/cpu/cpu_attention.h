// Divides attention into tasks for the threads. The loops are in CpuOps.
#ifndef BATON_COMMON_KERNELS_CPU_CPU_ATTENTION_H_
#define BATON_COMMON_KERNELS_CPU_CPU_ATTENTION_H_

#include <span>

#include "common/kernels/kernels.h"

namespace baton {

void AttentionCpu(KernelContext& context, const ConstTensorView& q, const KvPages& pages,
                  const PlacedSequences& sequences, const AttentionOptions& options,
                  const TensorView& out);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_CPU_ATTENTION_H_
