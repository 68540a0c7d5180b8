// The inner loops of the CPU kernels, compiled once per instruction set from the same text (*.inc).
//
// Each writes one part of one kernel's output, in one thread. All instruction sets give the same
// bits: sums run over 16 lanes (element i goes to lane i mod 16, in ascending order), which are
// then added in the order of a tree, whatever the width of the registers that hold them.
#ifndef BATON_COMMON_KERNELS_CPU_CPU_OPS_H_
#define BATON_COMMON_KERNELS_CPU_CPU_OPS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/base/ids.h"
#include "common/kernels/kernels.h"

namespace baton {

// out[r, c] = sum over k of x[r, k] * weight[c, k], plus bias[c], for a rectangle of `out`.
struct LinearTask {
  const float* x = nullptr;      // [rows, k]
  const void* weight = nullptr;  // [columns, k], of the type that the function is named for.
  const float* bias = nullptr;   // [columns] or null.
  float* out = nullptr;          // [rows, columns]
  size_t k = 0;
  size_t columns = 0;
  size_t row_begin = 0;
  size_t row_end = 0;
  size_t column_begin = 0;
  size_t column_end = 0;
  float* scratch = nullptr;  // LinearScratchFloats(k) floats.
};
// A tile's weight rows as float32.
constexpr size_t kLinearTileColumnsMax = 4;
constexpr size_t LinearScratchFloats(size_t k) { return kLinearTileColumnsMax * (k + 16); }

// Attention of `count` consecutive tokens of a sequence for the query heads of one KV head.
struct AttentionTask {
  const float* q = nullptr;  // Of the first token and first head; [count][heads_per_kv][head_dim]
  float* out = nullptr;      // with `row_stride` floats from token to token. As q.
  size_t row_stride = 0;
  KvPages pages;
  std::span<const BlockId> blocks;
  uint32_t position = 0;  // Absolute, of the first token.
  uint32_t count = 0;
  uint32_t kv_head = 0;
  uint32_t heads_per_kv = 0;
  float scale = 1.0f;
  float* scratch = nullptr;  // AttentionScratchFloats(count * heads_per_kv, head_dim) floats.
};
// A tile of K and of V as float32; per query its scores, running output, maximum and sum; one
// output.
constexpr size_t AttentionScratchFloats(size_t queries, size_t head_dim) {
  return 2 * kAttentionTile * head_dim + queries * (kAttentionTile + head_dim + 2) + head_dim + 16;
}

struct CpuOps {
  void (*linear_f32)(const LinearTask& task);
  void (*linear_bf16)(const LinearTask& task);
  void (*linear_f16)(const LinearTask& task);
  void (*attention)(const AttentionTask& task);
  // One row of n.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, size_t n, float* out);
  // n elements each.
  void (*silu_mul)(const float* gate, const float* up, size_t n, float* out);
  void (*add)(const float* y, size_t n, float* x);
  void (*exp)(const float* x, size_t n, float* out);  // For tests: the exp that attention uses.
};

extern const CpuOps kCpuOpsBaseline;
#if defined(__x86_64__)
extern const CpuOps kCpuOpsAvx2;
extern const CpuOps kCpuOpsAvx512;
#endif

// Null if this CPU, or this build, has not the instruction set.
const CpuOps* FindCpuOps(CpuIsa isa);

}  // namespace baton

#endif  // BATON_COMMON_KERNELS_CPU_CPU_OPS_H_
