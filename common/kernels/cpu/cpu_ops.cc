#include "common/kernels/cpu/cpu_ops.h"

namespace baton {

CpuIsa BestCpuIsa() {
#if defined(__x86_64__)
  // AMD's products of bfloat16 are twice as fast as those of floats, Intel's half as fast.
  if (__builtin_cpu_is("amd") && FindCpuOps(CpuIsa::kAvx512Bf16) != nullptr) {
    return CpuIsa::kAvx512Bf16;
  }
#endif
  for (CpuIsa isa : {CpuIsa::kAvx512, CpuIsa::kAvx2}) {
    if (FindCpuOps(isa) != nullptr) return isa;
  }
  return CpuIsa::kBaseline;
}

const CpuOps* FindCpuOps(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kBaseline:
      return &kCpuOpsBaseline;
    case CpuIsa::kAvx2:
#if defined(__x86_64__)
      // Every processor with AVX2 and FMA has F16C too, which not every compiler can ask for.
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kCpuOpsAvx2;
#endif
      return nullptr;
    case CpuIsa::kAvx512:
#if defined(__x86_64__)
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vnni")) {
        return &kCpuOpsAvx512;
      }
#endif
      return nullptr;
    case CpuIsa::kAvx512Bf16:
#if defined(__x86_64__)
      if (FindCpuOps(CpuIsa::kAvx512) != nullptr && __builtin_cpu_supports("avx512bf16")) {
        static const CpuOps ops = [] {
          CpuOps with_pairs = kCpuOpsAvx512;
          UseNativePairs(&with_pairs);
          return with_pairs;
        }();
        return &ops;
      }
#endif
      return nullptr;
  }
  return nullptr;
}

}  // namespace baton
