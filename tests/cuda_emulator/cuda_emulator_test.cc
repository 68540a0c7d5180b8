// Goal: the emulator promises what CUDA promises, and stops at what CUDA forbids. Method: small
// kernels that depend on it.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "common/kernels/cuda/device_code.cuh"

namespace baton::cuda {
namespace {

constexpr uint32_t kThreads = 96;

__global__ void ReverseKernel(const uint32_t* in, uint32_t* out) {
  __shared__ uint32_t numbers[kThreads];
  numbers[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

}  // namespace
}  // namespace baton::cuda
