// Mixtures of experts on GPUs, for steps of few tokens: see Route in kernels.h.
#ifndef BATON_COMMON_KERNELS_CUDA_CUDA_MIXTURE_H_
#define BATON_COMMON_KERNELS_CUDA_CUDA_MIXTURE_H_

#include <span>

#include "common/kernels/kernel_table.h"

namespace baton::cuda {

bool CanRouteCuda(const KernelContext& context, const Routing& routing, const PackedWeight& weight);
void RouteCuda(KernelContext& context, const ConstTensorView& logits,
               const ConstTensorView& shared_logits, const PlacedSequences& sequences,
               bool normalize, const Routing& routing);
void RoutedLinearCuda(KernelContext& context, const ConstTensorView& x, bool by_token,
                      ExpertProducts weights, const Routing& routing,
                      std::span<const TensorView> out);
void CombineRoutedCuda(KernelContext& context, const ConstTensorView& x, const Routing& routing,
                       const TensorView& out);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_CUDA_MIXTURE_H_
