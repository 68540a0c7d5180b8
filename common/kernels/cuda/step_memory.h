// How much memory of the GPU steps need beside weights and the KV cache, at most.
#ifndef BATON_COMMON_KERNELS_CUDA_STEP_MEMORY_H_
#define BATON_COMMON_KERNELS_CUDA_STEP_MEMORY_H_

#include <cstddef>

#include "common/kernels/cuda/launch.h"
#include "common/kernels/kernels.h"

namespace baton::cuda {

// What a step needs to know: tokens, block tables, how tokens are chosen.
size_t InputBytesFor(const StepBounds& bounds);

// The most that attention or the choice of tokens needs. What products need is known when their
// weights are packed.
size_t ScratchBytesFor(const Launch& launch, DType activations, const StepBounds& bounds);

// Of SampleTokens, with its result: [rows] tokens come first.
size_t SampledTokensBytes(uint32_t rows);

}  // namespace baton::cuda

#endif  // BATON_COMMON_KERNELS_CUDA_STEP_MEMORY_H_
