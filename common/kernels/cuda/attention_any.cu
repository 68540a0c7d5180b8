// Attention in float32 for whatever the fast kernels do not take: every type, head size, window and
// cap. One block computes one query vector; its warps take keys in turn, each with a running
// maximum, sum and output (Milakov and Gimelshein, "Online normalizer calculation for softmax",
// 2018), which are merged at the end.
#include "common/kernels/cuda/device_code.cuh"
#include "common/tensor/kv_row.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kHeadDimMost = 1024;

// kNumbers: of a head, for each lane.
template <uint32_t kNumbers, typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    AttentionAnyKernel(AttentionArgs args, size_t row_bytes) {
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float outputs[kWarps][kNumbers * kWarp];
  WaitForPrevious();
  LetNextStart();
  const uint32_t row = blockIdx.x;
  const uint32_t head = blockIdx.y;
  const uint32_t index = args.table.row_sequence[row];
  if (index >= args.table.count) return;  // Also kNoSequence.
  const DeviceSequence sequence = args.table.sequences[index];
  if (sequence.count == 0) return;
  const DevicePages& pages = args.pages;
  const uint32_t n = pages.head_dim;
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t* const blocks = args.table.block_table + sequence.blocks;
  const uint32_t position = sequence.position + row - sequence.row;
  const uint32_t first =
      args.window == 0 || position < args.window ? 0 : position - args.window + 1;
  const uint32_t kv_head = head / (args.heads / pages.kv_heads);
  const size_t offset = (static_cast<size_t>(row) * args.heads + head) * n;
  float q[kNumbers];
  float output[kNumbers];
#pragma unroll
  for (uint32_t j = 0; j < kNumbers; ++j) {
    const uint32_t i = lane + j * kWarp;
    q[j] = i < n ? ToFloat(static_cast<const T*>(args.q)[offset + i]) : 0.0f;
    output[j] = 0.0f;
  }
  float maximum = -INFINITY;
  float sum = 0.0f;
  for (uint32_t key = first + warp; key <= position; key += kWarps) {
    const std::byte* const k =
        pages.data + KvRowOffset(pages, row_bytes, blocks, false, kv_head, key);
    const std::byte* const v =
        pages.data + KvRowOffset(pages, row_bytes, blocks, true, kv_head, key);
    const float k_scale = KvScale(k, n, pages.dtype);
    const float v_scale = KvScale(v, n, pages.dtype);
    float score = 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < kNumbers; ++j) {
      const uint32_t i = lane + j * kWarp;
      if (i < n) score += q[j] * KvNumber(k, i, pages.dtype, k_scale);
    }
    score = WarpSum(score) * args.scale;
    if (args.soft_cap > 0.0f) score = args.soft_cap * tanhf(score / args.soft_cap);
    const float higher = fmaxf(maximum, score);
    const float kept = expf(maximum - higher);
    const float weight = expf(score - higher);
    maximum = higher;
    sum = sum * kept + weight;
#pragma unroll
    for (uint32_t j = 0; j < kNumbers; ++j) {
      const uint32_t i = lane + j * kWarp;
      if (i < n) output[j] = output[j] * kept + weight * KvNumber(v, i, pages.dtype, v_scale);
    }
  }
  if (lane == 0) {
    maxima[warp] = maximum;
    sums[warp] = sum;
  }
#pragma unroll
  for (uint32_t j = 0; j < kNumbers; ++j) outputs[warp][lane + j * kWarp] = output[j];
  __syncthreads();
  float highest = maxima[0];
  for (uint32_t w = 1; w < kWarps; ++w) highest = fmaxf(highest, maxima[w]);
  float total = 0.0f;
  for (uint32_t w = 0; w < kWarps; ++w) total += sums[w] * expf(maxima[w] - highest);
  for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
    float value = 0.0f;
    for (uint32_t w = 0; w < kWarps; ++w) value += outputs[w][i] * expf(maxima[w] - highest);
    static_cast<T*>(args.out)[offset + i] = FromFloat<T>(value / total);
  }
}

}  // namespace

cudaError_t AttentionAny(const Launch& launch, const AttentionArgs& args) {
  if (args.table.rows == 0) return cudaSuccess;
  if (args.pages.head_dim > kHeadDimMost) return cudaErrorInvalidValue;
  const size_t row_bytes = KvRowBytes(args.pages.dtype, args.pages.head_dim);
  const dim3 grid(args.table.rows, args.heads);
  return WithActivationType(args.type, [&](auto sample) {
    using T = decltype(sample);
    const auto kernel = args.pages.head_dim <= 4 * kWarp   ? AttentionAnyKernel<4, T>
                        : args.pages.head_dim <= 8 * kWarp ? AttentionAnyKernel<8, T>
                                                           : AttentionAnyKernel<32, T>;
    return StartKernel(kernel, grid, dim3(kWarps * kWarp), 0, launch, args, row_bytes);
  });
}

}  // namespace baton::cuda
