#include "common/kernels/cpu/cpu_ops.h"

namespace baton {

CpuIsa BestCpuIsa() {
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
  }
  return nullptr;
}

}  // namespace baton
