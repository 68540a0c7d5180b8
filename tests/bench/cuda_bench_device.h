// Kernels that cuda_bench needs besides those that it measures: random data, the limits.
#ifndef BATON_TESTS_BENCH_CUDA_BENCH_DEVICE_H_
#define BATON_TESTS_BENCH_CUDA_BENCH_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/kernels/cuda/launch.h"

namespace baton::cuda {

// Normal numbers of mean 0; of type kBF16 or kF32. `count` is even.
cudaError_t FillNormal(const Launch& launch, DType type, size_t count, float deviation,
                       uint32_t seed, void* out);
// Bytes of any value. `bytes` is a multiple of 4.
cudaError_t FillBytes(const Launch& launch, size_t bytes, uint32_t seed, void* out);
// Rows of a KV cache of 8 bits: `dim` bytes, a multiple of 4, and a scale that makes those of kI8
// numbers of about 1.
cudaError_t FillQuantizedRows(const Launch& launch, size_t rows, uint32_t dim, uint32_t seed,
                              void* out);

// Reads all of it and keeps nothing: what a kernel that only reads can reach.
// `bytes` is a multiple of 16.
cudaError_t ReadAll(const Launch& launch, const void* data, size_t bytes, uint32_t* out);

// A kernel on every multiprocessor that waits for the one before it and does nothing.
cudaError_t DoNothing(const Launch& launch);

}  // namespace baton::cuda

#endif  // BATON_TESTS_BENCH_CUDA_BENCH_DEVICE_H_
