// Which experts the tokens of a decode step go to, without the host: RouteExperts of kernels.h, and
// the order in which the experts' rows lie.
//
// One block of threads. A warp takes a token at a time and marks its experts, a bit for each; then
// a thread takes an expert at a time and gives the tokens that have its bit their rows.
#include "common/kernels/cuda/device_code.cuh"

namespace baton::cuda {
namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWarps = kThreads / kWarp;
constexpr uint32_t kWords = kRoutedExpertsMax / 32;  // Of a token's bits.
static_assert(kRoutedExpertsMax == kThreads);

struct Chosen {
  uint32_t bits[kRoutedTokensMax][kWords];  // None: the token goes to no expert.
  // exp(logit - highest) * factor is the weight.
  float highest[kRoutedTokensMax];
  float factor[kRoutedTokensMax];
};

// The likeliest expert that has no bit yet; of equal ones the first. All lanes get it.
__device__ uint32_t Likeliest(const float* logits, uint32_t experts, const uint32_t* bits) {
  // What is not a number comes behind all others, and what has a bit is not there.
  float best = -INFINITY;
  uint32_t id = ~0u;
  for (uint32_t i = threadIdx.x % kWarp; i < experts; i += kWarp) {
    if (bits[i / 32] >> i % 32 & 1) continue;
    const float logit = logits[i];
    if (id == ~0u || logit > best) {
      best = logit == logit ? logit : -INFINITY;
      id = i;
    }
  }
#pragma unroll
  for (uint32_t offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const uint32_t other_id = __shfl_xor_sync(0xffffffffu, id, offset);
    if (other_id == ~0u) continue;
    if (id == ~0u || other > best || (other == best && other_id < id)) {
      best = other;
      id = other_id;
    }
  }
  return id;
}

__device__ void Choose(const float* logits, const RoutingShape& shape, bool normalize,
                       uint32_t token, Chosen& chosen) {
  const uint32_t lane = threadIdx.x % kWarp;
  uint32_t* const bits = chosen.bits[token];
  float highest = -INFINITY;
  for (uint32_t i = lane; i < shape.experts; i += kWarp) highest = fmaxf(highest, logits[i]);
  highest = WarpMax(highest);
  float sum = 0.0f;
  for (uint32_t i = lane; i < shape.experts; i += kWarp) sum += expf(logits[i] - highest);
  sum = WarpSum(sum);
  float chosen_sum = 0.0f;
  for (uint32_t i = 0; i < shape.per_token; ++i) {
    __syncwarp();  // The bits of the one before.
    const uint32_t id = Likeliest(logits, shape.experts, bits);
    __syncwarp();
    if (lane == 0) bits[id / 32] |= 1u << id % 32;
    chosen_sum += expf(logits[id] - highest);
  }
  if (lane != 0) return;
  chosen.highest[token] = highest;
  chosen.factor[token] = 1.0f / (normalize ? chosen_sum : sum);
}

// The experts of a token before `expert`.
__device__ uint32_t Before(const uint32_t* bits, uint32_t expert) {
  uint32_t count = 0;
  for (uint32_t word = 0; word < expert / 32; ++word) count += __popc(bits[word]);
  return count + __popc(bits[expert / 32] & ((1u << expert % 32) - 1));
}

// The sum over the threads before this one. All threads call this.
__device__ uint32_t ExclusiveSum(uint32_t x) {
  __shared__ uint32_t sums[kWarps];
  const uint32_t lane = threadIdx.x % kWarp;
  uint32_t sum = x;
#pragma unroll
  for (uint32_t offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t before = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == kWarp - 1) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  for (uint32_t warp = 0; warp < threadIdx.x / kWarp; ++warp) sum += sums[warp];
  return sum - x;
}

__global__ void __launch_bounds__(kThreads)
    RouteKernel(const float* logits, const float* shared_logits, const uint32_t* row_sequence,
                RoutingShape shape, bool normalize, RoutingTables tables) {
  __shared__ Chosen chosen;
  WaitForPrevious();
  LetNextStart();
  for (uint32_t token = threadIdx.x / kWarp; token < shape.tokens; token += kWarps) {
    for (uint32_t i = threadIdx.x % kWarp; i < kWords; i += kWarp) chosen.bits[token][i] = 0;
    if (row_sequence[token] == kNoSequence) continue;
    Choose(logits + static_cast<size_t>(token) * shape.experts, shape, normalize, token, chosen);
  }
  for (uint32_t i = threadIdx.x; i < shape.tokens * shape.terms; i += kThreads) {
    tables.term_rows[i] = 0;
    tables.term_weights[i] = 0.0f;
  }
  __syncthreads();
  const uint32_t expert = threadIdx.x;
  const auto has = [&](uint32_t token) {
    return expert < shape.experts && (chosen.bits[token][expert / 32] >> expert % 32 & 1) != 0;
  };
  uint32_t count = 0;
  for (uint32_t token = 0; token < shape.tokens; ++token) count += has(token) ? 1 : 0;
  // Rows in the lower half, groups in the upper.
  const uint32_t before = ExclusiveSum(count | (count > 0 ? 1u << 16 : 0));
  uint32_t row = before & 0xffff;
  if (count > 0) tables.groups[before >> 16] = {expert, row, count};
  if (threadIdx.x == kThreads - 1) {
    const uint32_t groups = (before >> 16) + (count > 0 ? 1 : 0);
    for (uint32_t i = groups; i < RoutedGroupsMax(shape); ++i) tables.groups[i] = {};
  }
  for (uint32_t token = 0; token < shape.tokens; ++token) {
    if (!has(token)) continue;
    const uint32_t term = token * shape.terms + Before(chosen.bits[token], expert);
    const float logit = logits[static_cast<size_t>(token) * shape.experts + expert];
    tables.row_tokens[row] = token;
    tables.term_rows[term] = row;
    tables.term_weights[term] = expf(logit - chosen.highest[token]) * chosen.factor[token];
    ++row;
  }
  // The expert of all tokens comes last.
  if (shared_logits == nullptr || threadIdx.x >= shape.tokens) return;
  if (row_sequence[threadIdx.x] == kNoSequence) return;
  const uint32_t term = threadIdx.x * shape.terms + shape.per_token;
  tables.term_rows[term] = shape.tokens * shape.per_token + threadIdx.x;
  tables.term_weights[term] = 1.0f / (1.0f + expf(-shared_logits[threadIdx.x]));
}

}  // namespace

cudaError_t RouteTokens(const Launch& launch, const float* logits, const float* shared_logits,
                        const uint32_t* row_sequence, const RoutingShape& shape, bool normalize,
                        const RoutingTables& tables) {
  if (shape.tokens == 0) return cudaSuccess;
  if (shape.tokens > kRoutedTokensMax || shape.experts > kRoutedExpertsMax ||
      shape.per_token == 0 || shape.per_token > shape.experts) {
    return cudaErrorInvalidValue;
  }
  return StartKernel(RouteKernel, dim3(1), dim3(kThreads), 0, launch, logits, shared_logits,
                     row_sequence, shape, normalize, tables);
}

}  // namespace baton::cuda
