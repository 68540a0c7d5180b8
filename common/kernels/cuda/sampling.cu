// Sample() of common/sampling/sampler.cc on a GPU, with the same bits: floating point is the same
// operations on single logits, and all sums are of integers.
//
// This file must be compiled with -fmad=false and without fast math: a fused multiply-add, or a
// division that is not rounded correctly, changes weights. See "Equal bits" in DESIGN_NOTES.md.
//
// Three kernels, each of which ends before the next one reads what it wrote. The first makes the
// edits and finds the highest logits of parts of a row. The second turns logits into weights and
// adds them up by segments. With the third, one block for each row finds what top-k, top-p and
// min-p leave, and draws.
#include <algorithm>

#include "common/kernels/cuda/device_code.cuh"
#include "common/kernels/sample_row.h"

namespace baton::cuda {
namespace {

constexpr uint32_t kAll = 0xffffffffu;  // Lanes of a warp.
// What one warp adds up. As many segments as a block has threads can be searched.
constexpr uint32_t kSegment = 512;
constexpr uint32_t kPartThreads = 256;
constexpr uint32_t kPart = kPartThreads / kWarp * kSegment;
constexpr uint32_t kChooseThreads = 1024;
constexpr uint32_t kChooseWarps = kChooseThreads / kWarp;
static_assert(kSampleVocabMax <= kSegment * kChooseThreads);

constexpr uint32_t DivideUp(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// What the kernels tell each other.
struct Scratch {
  uint64_t* highest = nullptr;       // [rows, parts]: Rank of the likeliest token.
  uint64_t* segment_sums = nullptr;  // [rows, segments]
  uint32_t* weights = nullptr;       // [rows, vocab]
};

struct Problem {
  float* logits = nullptr;  // [rows, vocab]
  const SampleRow* samples = nullptr;
  const LogitEdit* edits = nullptr;
  int32_t* tokens = nullptr;
  uint32_t vocab = 0;
  uint32_t parts = 0;
  uint32_t segments = 0;
  Scratch scratch;
};

// An integer with the order of logits. Zeros of both signs are equal.
__device__ uint32_t KeyOf(float logit) {
  const uint32_t bits = logit == 0.0f ? 0u : __float_as_uint(logit);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float LogitOf(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The order of likelihood: ties go to the lower id.
__device__ uint64_t Rank(float logit, uint32_t id) {
  return static_cast<uint64_t>(KeyOf(logit)) << 32 | static_cast<uint32_t>(~id);
}

__device__ uint64_t WarpHighest(uint64_t rank) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAll, rank, offset);
    rank = other > rank ? other : rank;
  }
  return rank;
}

__device__ uint64_t WarpTotal(uint64_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
  return x;
}

// ---- First kernel ------------------------------------------------------------------------------

// Makes the edits of tokens in [begin, end). One thread makes all of one token, in order.
__device__ void MakeEdits(const SampleRow& sample, const LogitEdit* edits, uint32_t begin,
                          uint32_t end, float* logits) {
  for (uint32_t i = sample.edits_begin + threadIdx.x; i < sample.edits_end; i += kPartThreads) {
    const uint32_t id = static_cast<uint32_t>(edits[i].id);
    if (id < begin || id >= end) continue;
    if (i > sample.edits_begin && edits[i - 1].id == edits[i].id) continue;
    float logit = Comparable(logits[id]);
    for (uint32_t j = i; j < sample.edits_end && edits[j].id == edits[i].id; ++j) {
      logit = Edited(logit, edits[j]);
    }
    logits[id] = logit;
  }
}

__global__ void __launch_bounds__(kPartThreads) EditKernel(Problem problem) {
  __shared__ uint64_t warp_highest[kPartThreads / kWarp];
  const uint32_t row = blockIdx.y;
  const uint32_t begin = blockIdx.x * kPart;
  const uint32_t end = min(begin + kPart, problem.vocab);
  float* logits = problem.logits + static_cast<size_t>(row) * problem.vocab;
  WaitForPrevious();
  LetNextStart();

  MakeEdits(problem.samples[row], problem.edits, begin, end, logits);
  __syncthreads();
  uint64_t highest = 0;  // Below the rank of any logit.
#pragma unroll
  for (uint32_t i = 0; i < kPart / kPartThreads; ++i) {
    const uint32_t id = begin + i * kPartThreads + threadIdx.x;
    const uint64_t rank = id < end ? Rank(Comparable(logits[id]), id) : 0;
    highest = rank > highest ? rank : highest;
  }
  highest = WarpHighest(highest);
  if (threadIdx.x % kWarp == 0) warp_highest[threadIdx.x / kWarp] = highest;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  highest = WarpHighest(threadIdx.x < kPartThreads / kWarp ? warp_highest[threadIdx.x] : 0);
  if (threadIdx.x == 0) {
    problem.scratch.highest[static_cast<size_t>(row) * problem.parts + blockIdx.x] = highest;
  }
}

// ---- Second kernel -----------------------------------------------------------------------------

// The likeliest token of a row. All lanes of a warp call this.
__device__ uint64_t HighestOfRow(const Problem& problem, uint32_t row) {
  const uint64_t* parts = problem.scratch.highest + static_cast<size_t>(row) * problem.parts;
  uint64_t highest = 0;
  for (uint32_t part = threadIdx.x % kWarp; part < problem.parts; part += kWarp) {
    highest = parts[part] > highest ? parts[part] : highest;
  }
  return WarpHighest(highest);
}

// Whether the token is the likeliest one, without a draw: so it is, too, if none is possible.
__device__ bool IsGreedy(const SampleRow& sample, float highest) {
  return sample.temperature <= 0.0f || highest == -std::numeric_limits<float>::infinity();
}

// A block for each part of a row, a warp for each segment.
__global__ void __launch_bounds__(kPartThreads) WeighKernel(Problem problem) {
  const uint32_t row = blockIdx.y;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t segment = blockIdx.x * (kPartThreads / kWarp) + threadIdx.x / kWarp;
  const size_t first = static_cast<size_t>(row) * problem.vocab;
  WaitForPrevious();
  LetNextStart();

  const uint64_t rank = HighestOfRow(problem, row);
  const float highest = LogitOf(static_cast<uint32_t>(rank >> 32));
  const SampleRow& sample = problem.samples[row];
  if (IsGreedy(sample, highest)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      problem.tokens[row] = static_cast<int32_t>(~static_cast<uint32_t>(rank));
    }
    return;
  }
  const float temperature = sample.temperature;
  float logits[kSegment / kWarp];
#pragma unroll
  for (uint32_t i = 0; i < kSegment / kWarp; ++i) {
    const uint32_t id = segment * kSegment + i * kWarp + lane;
    logits[i] = id < problem.vocab ? Comparable(problem.logits[first + id]) : highest;
  }
  uint64_t sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kSegment / kWarp; ++i) {
    const uint32_t id = segment * kSegment + i * kWarp + lane;
    const uint32_t weight = WeightOf(logits[i], highest, temperature);
    if (id < problem.vocab) {
      problem.scratch.weights[first + id] = weight;
      sum += weight;
    }
  }
  sum = WarpTotal(sum);
  if (lane == 0 && segment < problem.segments) {
    problem.scratch.segment_sums[static_cast<size_t>(row) * problem.segments + segment] = sum;
  }
}

// ---- Third kernel ------------------------------------------------------------------------------

// The token in the order of likelihood behind which all are dropped.
struct Last {
  uint32_t key = 0;
  uint32_t id = ~0u;
};

// Where a running sum reaches what is wanted.
struct Place {
  uint32_t index;
  uint64_t rest;  // What is wanted of this one, after all before it: at least 1.
  uint64_t sum;   // What this one has: at least `rest`.
};

// Classes of weight and digits of keys, the highest value first in Find(): see there.
constexpr uint32_t kBins = 2 * kChooseThreads;

struct Shared {
  uint32_t low[kBins];  // 64-bit sums in two halves: only 32-bit additions are fast here.
  uint32_t high[kBins];
  uint64_t segment_sums[kChooseThreads];
  uint64_t warp_sums[kChooseWarps];
  Place place;
};

// A row as the third kernel sees it. All threads hold the same.
struct Row {
  const float* logits = nullptr;
  const uint32_t* weights = nullptr;
  uint32_t vocab = 0;
  uint32_t segments = 0;
  float highest = 0.0f;
  float temperature = 0.0f;
  Last last;                  // Nothing is dropped at first.
  uint32_t weight_least = 0;  // Lighter tokens are dropped.

  __device__ bool Keeps(uint32_t id, uint32_t key, uint32_t weight) const {
    return (key > last.key || (key == last.key && id <= last.id)) && weight >= weight_least;
  }
};

struct Token {
  uint32_t id = 0;
  uint32_t key = 0;
  uint32_t weight = 0;  // 0 if it was dropped.
};

__device__ Token TokenAt(const Row& row, uint32_t id) {
  const uint32_t key = KeyOf(Comparable(row.logits[id]));
  const uint32_t weight = row.weights[id];
  return {id, key, row.Keeps(id, key, weight) ? weight : 0};
}

// visit(token) for tokens first, first + step, … below end: several loads are under way at once.
template <typename Visit>
__device__ void ForEachToken(const Row& row, uint32_t first, uint32_t step, uint32_t end,
                             const Visit& visit) {
  constexpr uint32_t kBatch = 8;
  for (uint32_t begin = first; begin < end; begin += step * kBatch) {
    Token tokens[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t id = begin + i * step;
      if (id < end) tokens[i] = TokenAt(row, id);
    }
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      if (begin + i * step < end) visit(tokens[i]);
    }
  }
}

// Sums up to and including each thread's `x`. All threads of the block call this.
__device__ uint64_t InclusiveSum(uint64_t x, Shared& shared) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t warp = threadIdx.x / kWarp;
  const auto warp_sum = [lane](uint64_t sum) {
#pragma unroll
    for (uint32_t offset = 1; offset < kWarp; offset *= 2) {
      const uint64_t before = __shfl_up_sync(kAll, sum, offset);
      if (lane >= offset) sum += before;
    }
    return sum;
  };
  x = warp_sum(x);
  __syncthreads();  // The sums of the call before are no longer read.
  if (lane == kWarp - 1) shared.warp_sums[warp] = x;
  __syncthreads();
  if (warp == 0) shared.warp_sums[lane] = warp_sum(shared.warp_sums[lane]);
  __syncthreads();
  return warp == 0 ? x : x + shared.warp_sums[warp - 1];
}

// The thread with which the sum over threads reaches wanted(total), which is at least 1 and at most
// the total. All threads of the block call this and get the same.
template <typename Wanted>
__device__ Place Find(uint64_t x, const Wanted& wanted, Shared& shared) {
  const uint64_t sum = InclusiveSum(x, shared);
  const uint64_t limit = wanted(shared.warp_sums[kChooseWarps - 1]);
  if (sum >= limit && sum - x < limit) shared.place = {threadIdx.x, limit - (sum - x), x};
  __syncthreads();
  return shared.place;  // The next one is written after more barriers.
}

__device__ uint64_t BinSum(const Shared& shared, uint32_t bin) {
  return static_cast<uint64_t>(shared.high[bin]) << 32 | shared.low[bin];
}

// The bin with which the sum over bins, from the highest down, reaches wanted(total).
template <typename Wanted>
__device__ Place FindBin(const Wanted& wanted, Shared& shared) {
  const uint32_t upper = kBins - 1 - 2 * threadIdx.x;
  const Place pair = Find(BinSum(shared, upper) + BinSum(shared, upper - 1), wanted, shared);
  const uint32_t bin = kBins - 1 - 2 * pair.index;
  const uint64_t sum = BinSum(shared, bin);
  if (sum >= pair.rest) return {bin, pair.rest, sum};
  return {bin - 1, pair.rest - sum, pair.sum - sum};
}

__device__ void ClearBins(Shared& shared) {
  __syncthreads();  // They are no longer read.
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kChooseThreads) {
    shared.low[bin] = 0;
    shared.high[bin] = 0;
  }
  __syncthreads();
}

// Adds to bins. What follows one another in one bin is added at once: many equal tokens would
// otherwise stand in line for it.
class BinAdder {
 public:
  __device__ explicit BinAdder(Shared& shared) : shared_(shared) {}

  __device__ void Add(uint32_t bin, uint32_t amount) {
    if (bin != bin_) {
      Flush();
      bin_ = bin;
    }
    sum_ += amount;
  }

  __device__ void Flush() {
    const uint32_t low = static_cast<uint32_t>(sum_);
    uint32_t high = static_cast<uint32_t>(sum_ >> 32);
    if (low != 0 && atomicAdd(&shared_.low[bin_], low) + low < low) ++high;  // It carries.
    if (high != 0) atomicAdd(&shared_.high[bin_], high);
    sum_ = 0;
  }

 private:
  Shared& shared_;
  uint32_t bin_ = 0;
  uint64_t sum_ = 0;
};

// The id with which the sum of amount(token), by id, reaches wanted(total). `segment_sum` is that
// of the segment with the thread's number.
template <typename Amount, typename Wanted>
__device__ uint32_t FindId(const Row& row, uint64_t segment_sum, const Amount& amount,
                           const Wanted& wanted, Shared& shared) {
  const Place segment = Find(segment_sum, wanted, shared);
  const uint32_t id = segment.index * kSegment + threadIdx.x;
  const bool inside = threadIdx.x < kSegment && id < row.vocab;
  const Place place = Find(
      inside ? amount(TokenAt(row, id)) : 0, [&](uint64_t) { return segment.rest; }, shared);
  return segment.index * kSegment + place.index;
}

// Sums of amount(token) by segments: that of the segment with the thread's number.
template <typename Amount>
__device__ uint64_t SumSegments(const Row& row, const Amount& amount, Shared& shared) {
  const uint32_t lane = threadIdx.x % kWarp;
  __syncthreads();  // The sums of the call before are no longer read.
  for (uint32_t segment = threadIdx.x / kWarp; segment < row.segments; segment += kChooseWarps) {
    const uint32_t begin = segment * kSegment;
    uint64_t sum = 0;
    ForEachToken(row, begin + lane, kWarp, min(begin + kSegment, row.vocab),
                 [&](const Token& token) { sum += amount(token); });
    sum = WarpTotal(sum);
    if (lane == 0) shared.segment_sums[segment] = sum;
  }
  __syncthreads();
  return threadIdx.x < row.segments ? shared.segment_sums[threadIdx.x] : 0;
}

// The last of the fewest likeliest tokens whose amount(token) sum to at least `wanted`. All tokens
// of one key that have an amount have the same: amount_of(key).
template <typename Amount, typename AmountOf>
__device__ Last FindLast(const Row& row, uint64_t wanted, const Amount& amount,
                         const AmountOf& amount_of, Shared& shared) {
  uint32_t key = 0;  // Its leading digits.
  Place place{};
  uint32_t known = 32;  // From this bit on, digits are those of `key`.
  while (known > 0) {
    const uint32_t width = known > 10 ? 11 : 10;
    const uint32_t shift = known - width;
    ClearBins(shared);
    BinAdder bins(shared);
    ForEachToken(row, threadIdx.x, kChooseThreads, row.vocab, [&](const Token& token) {
      const uint32_t value = amount(token);
      if (value == 0 || static_cast<uint64_t>(token.key) >> known != key) return;
      bins.Add(token.key >> shift & ((1u << width) - 1), value);
    });
    bins.Flush();
    __syncthreads();
    place = FindBin([wanted](uint64_t) { return wanted; }, shared);
    wanted = place.rest;
    key = key << width | place.index;
    known = shift;
  }
  const uint32_t each = amount_of(key);
  const uint64_t count = (place.rest + each - 1) / each;
  // All of them, as far as they were kept until now.
  if (count * each >= place.sum) return {key, key == row.last.key ? row.last.id : ~0u};
  const auto is_tied = [&](const Token& token) { return token.key == key && amount(token) != 0; };
  const uint64_t tied = SumSegments(row, is_tied, shared);
  return {key, FindId(
                   row, tied, is_tied, [count](uint64_t) { return count; }, shared)};
}

__device__ Last FindTopK(const Row& row, uint32_t top_k, Shared& shared) {
  const auto one = [](const Token&) { return 1u; };
  return FindLast(
      row, top_k, one, [](uint32_t) { return 1u; }, shared);
}

// Classes of nearly equal weight: a float's exponent and four bits behind it, from that of 1 on.
__device__ uint32_t ClassOf(uint32_t weight) {
  constexpr uint32_t kClassOfOne = 0x3f800000u >> 19;
  return (__float_as_uint(__uint2float_rn(weight)) >> 19) - kClassOfOne;
}

__device__ Last FindTopP(const Row& row, float top_p, Shared& shared) {
  ClearBins(shared);
  BinAdder bins(shared);
  ForEachToken(row, threadIdx.x, kChooseThreads, row.vocab, [&](const Token& token) {
    if (token.weight != 0) bins.Add(ClassOf(token.weight), token.weight);
  });
  bins.Flush();
  __syncthreads();
  const Place last_class = FindBin(
      [top_p](uint64_t total) {
        const auto part =
            static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
        return part > 1 ? part : uint64_t{1};
      },
      shared);
  const auto amount = [&](const Token& token) {
    return token.weight != 0 && ClassOf(token.weight) == last_class.index ? token.weight : 0u;
  };
  const auto amount_of = [&](uint32_t key) {
    return WeightOf(LogitOf(key), row.highest, row.temperature);
  };
  return FindLast(row, last_class.rest, amount, amount_of, shared);
}

__global__ void __launch_bounds__(kChooseThreads, 1) ChooseKernel(Problem problem) {
  __shared__ Shared shared;
  WaitForPrevious();
  LetNextStart();

  const SampleRow sample = problem.samples[blockIdx.x];
  const float highest = LogitOf(static_cast<uint32_t>(HighestOfRow(problem, blockIdx.x) >> 32));
  if (IsGreedy(sample, highest)) return;
  const size_t first = static_cast<size_t>(blockIdx.x) * problem.vocab;
  Row row{problem.logits + first,
          problem.scratch.weights + first,
          problem.vocab,
          problem.segments,
          highest,
          sample.temperature};
  bool all = true;
  if (sample.top_k != 0 && sample.top_k < row.vocab) {
    row.last = FindTopK(row, sample.top_k, shared);
    all = false;
  }
  if (sample.top_p < 1.0f) {
    row.last = FindTopP(row, sample.top_p, shared);
    all = false;
  }
  if (sample.min_p > 0.0f) {
    row.weight_least =
        static_cast<uint32_t>(ceilf(sample.min_p * static_cast<float>(kWeightOfLikeliest)));
    all = false;
  }
  const auto weight = [](const Token& token) { return token.weight; };
  uint64_t segment_sum = 0;
  if (!all) {
    segment_sum = SumSegments(row, weight, shared);
  } else if (threadIdx.x < row.segments) {
    const size_t segment = static_cast<size_t>(blockIdx.x) * row.segments + threadIdx.x;
    segment_sum = problem.scratch.segment_sums[segment];
  }
  const auto target = [&](uint64_t total) {
    return static_cast<uint64_t>(static_cast<double>(sample.u) * static_cast<double>(total)) + 1;
  };
  const uint32_t id = FindId(row, segment_sum, weight, target, shared);
  if (threadIdx.x == 0) problem.tokens[blockIdx.x] = static_cast<int32_t>(id);
}

}  // namespace

size_t SampleScratchBytes(uint32_t rows, uint32_t vocab) {
  const size_t row_bytes = DivideUp(vocab, kPart) * sizeof(uint64_t) +
                           DivideUp(vocab, kSegment) * sizeof(uint64_t) + vocab * sizeof(uint32_t);
  return rows * row_bytes;
}

cudaError_t SampleTokens(const Launch& launch, float* logits, uint32_t rows, uint32_t vocab,
                         const SampleRow* samples, const LogitEdit* edits, void* scratch,
                         int32_t* tokens) {
  if (rows == 0) return cudaSuccess;
  if (vocab == 0 || vocab > kSampleVocabMax) return cudaErrorInvalidValue;
  Problem problem{
      logits, samples, edits, tokens, vocab, DivideUp(vocab, kPart), DivideUp(vocab, kSegment)};
  problem.scratch.highest = static_cast<uint64_t*>(scratch);
  problem.scratch.segment_sums = problem.scratch.highest + size_t{rows} * problem.parts;
  problem.scratch.weights =
      reinterpret_cast<uint32_t*>(problem.scratch.segment_sums + size_t{rows} * problem.segments);
  const dim3 parts(problem.parts, rows);
  cudaError_t error = StartKernel(EditKernel, parts, kPartThreads, 0, launch, problem);
  if (error == cudaSuccess) {
    error = StartKernel(WeighKernel, parts, kPartThreads, 0, launch, problem);
  }
  if (error != cudaSuccess) return error;
  return StartKernel(ChooseKernel, rows, kChooseThreads, 0, launch, problem);
}

}  // namespace baton::cuda
