// What cuda_bench measures, in groups.
#ifndef BATON_TESTS_BENCH_CUDA_BENCH_CASES_H_
#define BATON_TESTS_BENCH_CUDA_BENCH_CASES_H_

#include <cstddef>
#include <cstdint>

#include "common/kernels/cuda/launch.h"
#include "tests/bench/cuda_bench_runner.h"

namespace baton::cuda {

// The shape of Llama 3.1 8B.
constexpr uint32_t kHidden = 4096;
constexpr uint32_t kIntermediate = 14336;
constexpr uint32_t kHeads = 32;
constexpr uint32_t kKvHeads = 8;
constexpr uint32_t kHeadDim = 128;
constexpr uint32_t kVocab = 128256;
constexpr uint32_t kBlockTokens = 16;

// What the GPU does at most, a second.
struct Limits {
  double copy_bytes = 0;  // From its memory to its memory, read and written.
  double read_bytes = 0;
  double product_flops = 0;  // Of large matrices of bf16.
};

// The GPU's memory, full of random numbers.
struct RandomMemory {
  explicit RandomMemory(const Launch& launch);
  // Anew, twice as wide as the others: as logits are.
  void FillFloats(const Launch& launch) const;

  DeviceMemory weights{10ull << 30};     // bf16; of KV too.
  DeviceMemory activations{1ull << 30};  // bf16
  DeviceMemory floats{512ull << 20};
  DeviceMemory out{1ull << 30};  // Written by whoever is measured.
};

Limits MeasureLimits(const Runner& runner, const RandomMemory& memory);

// Seconds of out = x weight^T by cuBLASLt, in the fastest of the ways that it proposes; of bf16,
// out of kBF16 or kF32. 0: it has none.
double ProductSeconds(const Runner& runner, const RandomMemory& memory, uint32_t rows,
                      uint32_t inputs, uint32_t outputs, DType out_type);

// Products of few rows, with the weights' type and with cuBLASLt.
void BenchLinear(const Runner& runner, const RandomMemory& memory, const Limits& limits);
void BenchDecodeAttention(const Runner& runner, const RandomMemory& memory, const Limits& limits);
void BenchPrefillAttention(const Runner& runner, const RandomMemory& memory, const Limits& limits);
void BenchRowwise(const Runner& runner, const RandomMemory& memory, const Limits& limits);
void BenchSampling(const Runner& runner, const RandomMemory& memory);
void BenchGraphs(const Runner& runner);

}  // namespace baton::cuda

#endif  // BATON_TESTS_BENCH_CUDA_BENCH_CASES_H_
