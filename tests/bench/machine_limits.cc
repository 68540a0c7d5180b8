#include "tests/bench/machine_limits.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include "common/base/clock.h"
#include "common/kernels/kernel_threads.h"

// The widest vectors that the machine has, chosen when the program starts.
#if defined(__x86_64__)
#define BATON_WIDEST __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define BATON_WIDEST
#endif

namespace baton {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef uint64_t Words __attribute__((vector_size(64)));

constexpr int kRepeats = 5;  // The best counts: a limit is what can be reached.
constexpr size_t kBytesPerThread = size_t{256} << 20;
constexpr int kFmaRounds = 1 << 22;
constexpr int kFmaChains = 16;  // Hide the latency of one.
constexpr size_t kFloats = sizeof(Floats) / sizeof(float);

BATON_WIDEST uint64_t ReadAll(const Words* from, size_t count) {
  Words sums[4] = {};
  for (size_t i = 0; i + 4 <= count; i += 4) {
    for (size_t n = 0; n < 4; ++n) sums[n] ^= from[i + n];
  }
  const Words all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

// The chains differ, and the compiler does not see that nobody wants their ends. Compiled with
// -ffp-contract=fast, unlike everything else.
BATON_WIDEST float MultiplyAdd(int rounds) {
  Floats sums[kFmaChains];
  for (int n = 0; n < kFmaChains; ++n) sums[n] = Floats{} + static_cast<float>(n);
  const Floats factor = Floats{} + 0.999f;
  const Floats addend = Floats{} + 0.001f;
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < kFmaChains; ++n) sums[n] = sums[n] * factor + addend;
  }
  Floats all = {};
  for (const Floats& sum : sums) all += sum;
  return all[0];
}

#if defined(__x86_64__)
// Products of bytes; zero where the processor has no instruction for them.
__attribute__((target("avx512f,avx512vnni"))) int MultiplyBytes(int rounds) {
  __m512i sums[kFmaChains];
  for (int n = 0; n < kFmaChains; ++n) sums[n] = _mm512_set1_epi32(n);
  const __m512i weights = _mm512_set1_epi32(0x01020304);
  const __m512i x = _mm512_set1_epi32(0x04030201);
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < kFmaChains; ++n) sums[n] = _mm512_dpbusd_epi32(sums[n], weights, x);
  }
  __m512i all = _mm512_setzero_si512();
  for (const __m512i& sum : sums) all = _mm512_add_epi32(all, sum);
  return _mm512_cvtsi512_si32(all);
}
bool HasByteProducts() { return __builtin_cpu_supports("avx512vnni"); }
#else
int MultiplyBytes(int /*rounds*/) { return 0; }
bool HasByteProducts() { return false; }
#endif

// The shortest time of `run`, which all threads run at once.
template <typename Run>
double BestSeconds(KernelThreads& threads, const Run& run) {
  double best = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    const Instant start = Now();
    threads.ParallelFor(threads.count(), [&](uint32_t task, uint32_t /*thread*/) { run(task); });
    best = std::min(best, std::chrono::duration<double>(Now() - start).count());
  }
  return best;
}

}  // namespace

MachineLimits MeasureMachine(uint32_t thread_count) {
  KernelThreads threads(thread_count);
  MachineLimits limits;
  volatile uint64_t sink = 0;
  {
    const size_t words = kBytesPerThread / sizeof(Words);
    std::vector<std::vector<Words>> data(thread_count);
    for (std::vector<Words>& part : data) part.assign(words, Words{} + 1);
    const double seconds = BestSeconds(
        threads, [&](uint32_t task) { sink = sink + ReadAll(data[task].data(), words); });
    limits.read_bytes_per_second = static_cast<double>(kBytesPerThread) * thread_count / seconds;
  }
  const double rounds = static_cast<double>(kFmaRounds) * kFmaChains * thread_count;
  const double float_seconds = BestSeconds(threads, [&](uint32_t /*task*/) {
    sink = sink + static_cast<uint64_t>(MultiplyAdd(kFmaRounds));
  });
  limits.float_operations_per_second = 2.0 * kFloats * rounds / float_seconds;
  if (HasByteProducts()) {
    const double byte_seconds = BestSeconds(threads, [&](uint32_t /*task*/) {
      sink = sink + static_cast<uint64_t>(MultiplyBytes(kFmaRounds));
    });
    limits.byte_operations_per_second = 2.0 * sizeof(Floats) * rounds / byte_seconds;
  }
  return limits;
}

}  // namespace baton
