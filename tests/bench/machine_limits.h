// What this machine can do at most, measured here and now: the denominators of baton_bench.
#ifndef BATON_TESTS_BENCH_MACHINE_LIMITS_H_
#define BATON_TESTS_BENCH_MACHINE_LIMITS_H_

#include <cstdint>

namespace baton {

struct MachineLimits {
  double read_bytes_per_second = 0;        // From memory, with all threads.
  double float_operations_per_second = 0;  // Fused multiply-adds of float32, two operations each.
  double byte_operations_per_second = 0;   // The same of bytes (VNNI); 0 where there are none.
};

// Takes about a second. `threads` threads run at once, as the kernels' would.
MachineLimits MeasureMachine(uint32_t threads);

}  // namespace baton

#endif  // BATON_TESTS_BENCH_MACHINE_LIMITS_H_
